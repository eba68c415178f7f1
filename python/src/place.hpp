// SPDX-License-Identifier: BSD-3-Clause
/// What all bindings of `_cuda` begin with: device arrays by DLPack, checked to lie on one card, and where everything happens.
#pragma once

#include "array.hpp"
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "recollect/cuda/api.hpp"

namespace recollect::python {

/// (card, stream as a number): where everything happens.
using Place = std::pair<int, std::uintptr_t>;
/// A number for all, or an array of the device.
using Scale = std::pair<double, std::optional<In>>;

inline In array_of(const Scale& scale) { return scale.second ? *scale.second : In(); }

inline cuda::Queue queue(const Place& place) { return {place.first, reinterpret_cast<void*>(place.second)}; }

template <class A>
void check_card(const char* op, const char* name, const A& array, int card) {
  if (!array.is_valid()) return;
  if (array.device_type() != nb::device::cuda::value && array.device_type() != nb::device::cuda_managed::value)
    fail(status::type, op, ": ", name, " is not on a CUDA device; expected cuda:", card);
  if (array.device_id() != card) fail(status::type, op, ": ", name, " is on cuda:", array.device_id(), "; expected cuda:", card);
}

/// Arrays with their names, all of which lie on the card.
template <class... Named>
void check_cards(const char* op, const Place& place, const Named&... named) {
  (check_card(op, named.first, named.second, place.first), ...);
}

template <class A>
std::pair<const char*, const A&> named(const char* name, const A& array) {
  return {name, array};
}

}  // namespace recollect::python
