// SPDX-License-Identifier: BSD-3-Clause
/// `Lane`: one float32 with what math/ asks of a packet, so that feature maps are written once for all devices.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "recollect/math/feature_map.hpp"

namespace recollect::cuda {

struct Lane {
  float x = 0;

  constexpr Lane() = default;
  constexpr explicit Lane(float value) : x(value) {}

  friend constexpr Lane operator+(Lane a, Lane b) { return Lane(a.x + b.x); }
  friend constexpr Lane operator-(Lane a, Lane b) { return Lane(a.x - b.x); }
  friend constexpr Lane operator*(Lane a, Lane b) { return Lane(a.x * b.x); }
  friend constexpr Lane fma(Lane a, Lane b, Lane c) { return Lane(std::fma(a.x, b.x, c.x)); }
  /// The larger one; `a` where either is NaN.
  friend constexpr Lane max(Lane a, Lane b) { return b.x > a.x ? b : a; }
  friend constexpr Lane where_positive(Lane x, Lane y) { return x.x > 0 ? y : Lane(); }
  /// 2^n for a whole number n from -127 (where it is 0) on, in the low bits of `shifted` as in Packet.
  friend constexpr Lane power_of_two(Lane, Lane shifted) {
    return Lane(std::bit_cast<float>(std::bit_cast<std::uint32_t>(1.0f) + (std::bit_cast<std::uint32_t>(shifted.x) << 23)));
  }
};

/// Feature maps that act on each number alone, in the order of `feature_maps`; others have no device code.
template <class Map>
concept elementwise = requires(Lane x) { Map::template value<float>(x); };

/// The place of a map in the list, or -1 for one without device code.
template <class... Maps>
inline int map_number(type_list<Maps...>, std::string_view name) {
  int number = 0, found = -1;
  for_each(type_list<Maps...>{}, [&]<class Map>() {
    if (elementwise<Map> && Map::name == name) found = number;
    ++number;
  });
  return found;
}

/// "'identity', 'relu'", of those with device code.
template <class... Maps>
inline std::string map_names(type_list<Maps...>) {
  std::string text;
  for_each(type_list<Maps...>{}, [&]<class Map>() {
    if (elementwise<Map>) text += std::string(text.empty() ? "'" : ", '") + std::string(Map::name) + "'";
  });
  return text;
}

template <class... Maps>
constexpr float map_value(type_list<Maps...>, int wanted, float x) {
  int number = 0;
  float value = x;
  const auto offer = [&]<class Map>() {
    if constexpr (elementwise<Map>)
      if (number == wanted) value = Map::template value<float>(Lane(x)).x;
    ++number;
  };
  (offer.template operator()<Maps>(), ...);
  return value;
}

template <class... Maps>
constexpr float map_slope(type_list<Maps...>, int wanted, float x) {
  int number = 0;
  float slope = 1;
  const auto offer = [&]<class Map>() {
    if constexpr (elementwise<Map>)
      if (number == wanted) slope = Map::template slope<float>(Lane(x)).x;
    ++number;
  };
  (offer.template operator()<Maps>(), ...);
  return slope;
}

}  // namespace recollect::cuda
