// SPDX-License-Identifier: BSD-3-Clause
/// recollect::error becomes the Python exception of its kind.
#pragma once

#include <nanobind/nanobind.h>

#include "recollect/core/error.hpp"

namespace recollect::python {

inline PyObject* python_exception(status code) {
  switch (code) {
    case status::value:
      return PyExc_ValueError;
    case status::type:
      return PyExc_TypeError;
    case status::memory:
      return PyExc_MemoryError;
    default:
      return PyExc_RuntimeError;
  }
}

inline void translate_exceptions() {
  nanobind::register_exception_translator([](const std::exception_ptr& exception, void*) {
    try {
      std::rethrow_exception(exception);
    } catch (const error& problem) {
      PyErr_SetString(python_exception(problem.code()), problem.what());
    }
  });
}

}  // namespace recollect::python
