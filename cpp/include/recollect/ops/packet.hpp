// SPDX-License-Identifier: BSD-3-Clause
/// `Packet<T>`: as many numbers as one register holds, with the operators of a number, so that mathematics written as a template over
/// the number type runs on packets too. The only place that names Eigen's internal packet functions.
#pragma once

#include <Eigen/Core>

#include "recollect/core/dtype.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // a register type loses its alignment as a template argument; Eigen knows

namespace recollect {

template <class T>
struct Packet {
  using Register = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int width = Eigen::internal::unpacket_traits<Register>::size;
  /// How many of them the processor holds at once; the size of a register tile follows from it.
  static constexpr int registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;

  Register r;

  Packet() = default;
  Packet(Register value) : r(value) {}
  Packet(T value)
    requires(!std::is_same_v<T, Register>)
      : r(Eigen::internal::pset1<Register>(value)) {}

  static Packet load(const T* from) { return Eigen::internal::ploadu<Register>(from); }
  void store(T* to) const { Eigen::internal::pstoreu(to, r); }

  /// The first `count` numbers of a row whose end may be nearer than a packet; what is beyond reads as 0.
  static Packet load_some(const T* from, index_t count) {
    if (count >= width) return load(from);
    T lanes[width] = {};
    for (index_t i = 0; i < count; ++i) lanes[i] = from[i];
    return load(lanes);
  }
  void store_some(T* to, index_t count) const {
    if (count >= width) return store(to);
    T lanes[width];
    store(lanes);
    for (index_t i = 0; i < count; ++i) to[i] = lanes[i];
  }

  friend Packet operator+(Packet a, Packet b) { return Eigen::internal::padd(a.r, b.r); }
  friend Packet operator-(Packet a, Packet b) { return Eigen::internal::psub(a.r, b.r); }
  friend Packet operator*(Packet a, Packet b) { return Eigen::internal::pmul(a.r, b.r); }
  friend Packet operator/(Packet a, Packet b) { return Eigen::internal::pdiv(a.r, b.r); }
  friend Packet fma(Packet a, Packet b, Packet c) { return Eigen::internal::pmadd(a.r, b.r, c.r); }
  /// The larger one; `a` where either is NaN.
  friend Packet max(Packet a, Packet b) { return Eigen::internal::pmax(a.r, b.r); }
  friend Packet log2(Packet a) { return Eigen::internal::plog2(a.r); }
  /// Whether any number is above the limit, or NaN.
  friend bool any_above(Packet a, Packet limit) { return Eigen::internal::predux_any(Eigen::internal::pcmp_lt_or_nan(limit.r, a.r)); }
  /// Bits: the sign of a number, -0.0 or 0.0, and a number whose sign is turned where `sign` has one.
  friend Packet sign_bit(Packet a) { return Eigen::internal::pand(a.r, Eigen::internal::pset1<Register>(T(-0.0))); }
  friend Packet turn(Packet a, Packet sign) { return Eigen::internal::pxor(a.r, sign.r); }
  /// -|a|
  friend Packet negative_size(Packet a) { return Eigen::internal::por(a.r, Eigen::internal::pset1<Register>(T(-0.0))); }
  friend Packet where_negative(Packet a, Packet then, Packet otherwise) {
    using namespace Eigen::internal;
    return pselect(pcmp_lt(a.r, pset1<Register>(T(0))), then.r, otherwise.r);
  }
  /// 0 where a is 0, whatever b holds there, NaN too.
  friend Packet unless_zero(Packet a, Packet b) {
    using namespace Eigen::internal;
    return pandnot(b.r, pcmp_eq(a.r, pset1<Register>(T(0))));
  }
  friend T sum(Packet a) { return Eigen::internal::predux(a.r); }
  /// `a` where x > 0, and 0 elsewhere.
  friend Packet where_positive(Packet x, Packet a) {
    return Eigen::internal::pand(Eigen::internal::pcmp_lt(Eigen::internal::pset1<Register>(T(0)), x.r), a.r);
  }
  friend T largest(Packet a) { return Eigen::internal::predux_max(a.r); }

  /// 2^n for a whole number n <= 64, held as a number in n and in the low bits of shifted = n + exponent_shift.
  friend Packet power_of_two([[maybe_unused]] Packet n, [[maybe_unused]] Packet shifted) {
    using namespace Eigen::internal;
    if constexpr (std::is_same_v<T, float> && width > 1) {
      using Integer = typename unpacket_traits<Register>::integer_packet;
      const Integer exponent = plogical_shift_left<23>(preinterpret<Integer>(shifted.r));
      return preinterpret<Register>(padd(preinterpret<Integer>(pset1<Register>(1.0f)), exponent));
    } else if constexpr (std::is_same_v<T, float>) {
      return n.r > T(-127) ? pldexp(pset1<Register>(T(1)), n.r) : T(0);  // like the bits above
    } else {
      return pldexp(pset1<Register>(T(1)), n.r);
    }
  }
};

/// Turns a square of packets over its diagonal.
template <class T>
void transpose(Packet<T> (&square)[Packet<T>::width]) {
  if constexpr (Packet<T>::width > 1) {
    Eigen::internal::PacketBlock<typename Packet<T>::Register, Packet<T>::width> block;
    for (int i = 0; i < Packet<T>::width; ++i) block.packet[i] = square[i].r;
    Eigen::internal::ptranspose(block);
    for (int i = 0; i < Packet<T>::width; ++i) square[i].r = block.packet[i];
  }
}

namespace detail {

/// Adds halves of a register until it is one of the smallest that can be transposed.
template <class Register>
auto folded(const Register& r) {
  if constexpr (Eigen::internal::unpacket_traits<Register>::size > 4)
    return folded(Eigen::internal::predux_half_dowto4(r));
  else
    return r;
}

}  // namespace detail

/// sums[i] = the sum over the lanes of packet i. Inlined, because packets handed to a function have to lie in memory.
template <class T, int Count>
[[gnu::always_inline]] inline void lane_sums(const Packet<T> (&packets)[Count], T* sums) {
  using Register = decltype(detail::folded(packets[0].r));
  constexpr int width = Eigen::internal::unpacket_traits<Register>::size;
  static_assert(Count % width == 0);
  for (int first = 0; first < Count; first += width) {
    if constexpr (width == 1) {
      sums[first] = packets[first].r;
    } else {
      Eigen::internal::PacketBlock<Register, width> block;
      for (int i = 0; i < width; ++i) block.packet[i] = detail::folded(packets[first + i].r);
      Eigen::internal::ptranspose(block);
      Register total = block.packet[0];
      for (int i = 1; i < width; ++i) total = Eigen::internal::padd(total, block.packet[i]);
      Eigen::internal::pstoreu(sums + first, total);
    }
  }
}

}  // namespace recollect

#pragma GCC diagnostic pop
