// SPDX-License-Identifier: BSD-3-Clause
/// tanh and the logistic function, from 2^x of numbers that are not positive: nothing overflows, and small numbers keep all their digits.
#pragma once

#include "recollect/math/exp2.hpp"

namespace recollect::math {

/// T is the number type, V a packet of it.
template <class T>
inline constexpr T log2_e = T(1.44269504088896340735992468100189214L);

/// e^x for x <= 0.
template <class T, class V>
inline V exp_of_negative(V x) {
  return exp2<T>(x * V(log2_e<T>));
}

/// 2^y - 1 without cancellation, out of 2^n 2^f: (2^f - 1) 2^n + (2^n - 1). y is above exp2_constants::lowest and at most 64.
template <class T, class V>
inline V exp2_minus_one(V y) {
  using constants = exp2_constants<T>;
  constexpr int degree = sizeof(constants::c) / sizeof(T);
  const V shifted = y + V(constants::exponent_shift);
  const V n = shifted - V(constants::exponent_shift);
  const V f = y - n;
  V p = V(constants::c[degree - 1]);
  for (int i = degree - 2; i >= 0; --i) p = fma(p, f, V(constants::c[i]));
  const V power = power_of_two(n, shifted);
  return fma(p * f, power, power - V(T(1)));
}

/// tanh as a quotient, numerator over denominator, the latter from 1 to 2; a sum of many takes one division for several of them.
/// With e = exp(-2 |x|) - 1 it is -e / (2 + e).
template <class V>
struct quotient {
  V numerator, denominator;
};

template <class T, class V>
inline quotient<V> tanh_quotient(V x) {
  const V e = exp2_minus_one<T>(max(negative_size(x) * V(2 * log2_e<T>), V(exp2_constants<T>::lowest)));
  return {turn(turn(e, V(T(-0.0))), sign_bit(x)), e + V(T(2))};
}

template <class T, class V>
inline V tanh(V x) {
  const quotient<V> q = tanh_quotient<T>(x);
  return q.numerator / q.denominator;
}

/// 1 / (1 + exp(-x)), with all digits for large negative x too.
template <class T, class V>
inline V sigmoid(V x) {
  const V e = exp_of_negative<T>(negative_size(x));
  return where_negative(x, e, V(T(1))) / (e + V(T(1)));
}

}  // namespace recollect::math
