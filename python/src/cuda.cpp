// SPDX-License-Identifier: BSD-3-Clause
/// The module `_cuda`: the cards, memory of theirs, and the ops. It knows no CUDA header and no op of the CPU; kernels are in cuda/.
#include "exceptions.hpp"
#include "place.hpp"
#include <algorithm>

#include <nanobind/stl/vector.h>

#include "recollect/version.hpp"

namespace recollect::python {

using namespace nb::literals;

void bind_recall(nb::module_& m);
void bind_fast_weight(nb::module_& m);

namespace {

/// How many cards there are and, if none, why.
std::pair<int, std::string> cards() {
  std::string why;
  const int count = cuda::cards(why);
  return {count, why};
}

/// An array of the card that any framework can take over by DLPack.
nb::ndarray<nb::array_api> empty(int card, const std::vector<std::size_t>& shape, const std::string& type) {
  nb::dlpack::dtype element = nb::dtype<float>();
  if (type == "float16" || type == "bfloat16") {
    element.bits = 16;
    if (type == "bfloat16") element.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  }
  if (type == "int64") element = nb::dtype<std::int64_t>();
  if (type == "bool") element = nb::dtype<bool>();
  index_t bytes = element.bits / 8;
  for (std::size_t extent : shape) bytes *= static_cast<index_t>(extent);
  void* const memory = cuda::allocate(card, std::max<index_t>(bytes, 1));  // an owner needs something to own
  nb::capsule owner(memory, [](void* p) noexcept { cuda::release(p); });
  return nb::ndarray<nb::array_api>(memory, shape.size(), shape.data(), owner, nullptr, element, nb::device::cuda::value, card);
}

}  // namespace

void bind_cards(nb::module_& m) {
  m.attr("version") = version;
  m.attr("evidence") = RECOLLECT_CUDA_EVIDENCE;
  m.def("cards", &cards);
  m.def("card_name", &cuda::card_name, "card"_a);
  m.def("empty", &empty, "card"_a, "shape"_a, "dtype"_a);
}

}  // namespace recollect::python

NB_MODULE(_cuda, m) {
  recollect::python::translate_exceptions();
  recollect::python::bind_cards(m);
  recollect::python::bind_recall(m);
  recollect::python::bind_fast_weight(m);
}
