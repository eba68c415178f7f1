// SPDX-License-Identifier: BSD-3-Clause
/// 2^x for x <= 0, as softmax needs it: scores are kept in units of log 2, so that no multiplication is spent on the base.
#pragma once

#include <cmath>

namespace recollect::math {

template <class T>
struct exp2_constants;

/// 2^f on [-1/2, 1/2] by interpolation at Chebyshev nodes, with the constant term exactly 1; largest relative error 5.1e-9.
template <>
struct exp2_constants<float> {
  static constexpr float lowest = -127.0f;  // here the exponent field becomes 0, and 2^x exactly 0
  static constexpr float exponent_shift = 0x1.8p23f;
  static constexpr float c[] = {0x1.62e430p-1f, 0x1.ebfbe0p-3f, 0x1.c6af6cp-5f, 0x1.3b2a54p-7f, 0x1.5f0890p-10f, 0x1.44138ap-13f};
};

/// The same with largest relative error 8.4e-18.
template <>
struct exp2_constants<double> {
  static constexpr double lowest = -1100.0;
  static constexpr double exponent_shift = 0x1.8p52;
  static constexpr double c[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c598p-3,  0x1.c6b08d704a0c2p-5,  0x1.3b2ab6fba1ddap-7,
                                 0x1.5d87fe78a5276p-10, 0x1.430913096fd9fp-13, 0x1.ffcbfc670dcd4p-17, 0x1.62bfd47773353p-20,
                                 0x1.b524fae627834p-24, 0x1.e6063f7217bc6p-28, 0x1.e9d3fe3952179p-32};
};

/// c[I] + c[I + 1] f + ... Every coefficient is named as a constant: an array of constants does not exist on a device.
template <class T, int I, class V>
constexpr V exp2_polynomial(V f) {
  constexpr int terms = sizeof(exp2_constants<T>::c) / sizeof(T);
  constexpr T coefficient = exp2_constants<T>::c[I];
  if constexpr (I + 1 < terms) return fma(exp2_polynomial<T, I + 1>(f), f, V(coefficient));
  return V(coefficient);
}

/// T is the number type, V a packet of it. -inf gives exactly 0. NaN stays NaN: it reaches the result through f, never through the bits
/// of the exponent, which its payload would spoil.
template <class T, class V>
constexpr V exp2(V x) {
  using constants = exp2_constants<T>;
  x = max(x, V(constants::lowest));
  const V shifted = x + V(constants::exponent_shift);
  const V n = shifted - V(constants::exponent_shift);
  const V f = x - n;
  const V p = exp2_polynomial<T, 0>(f);
  const V power = power_of_two(n, shifted);
  return fma(p * f, power, power);
}

}  // namespace recollect::math
