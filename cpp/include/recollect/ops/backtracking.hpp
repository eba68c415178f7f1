// SPDX-License-Identifier: BSD-3-Clause
/// `backtracking::forward` and its gradient on the CPU; the contract is in spec/backtracking.hpp. The sparse read alone:
/// ops/sparse_read.hpp.
#pragma once

#include <optional>
#include <string>

#include "recollect/ops/recurrence_backward.hpp"
#include "recollect/ops/sparse_read.hpp"

namespace recollect::backtracking {

namespace detail {

inline constexpr std::string_view op = "backtracking";

/// An extent as an error says it: a letter, and its number once that is known.
struct Extent {
  const char* letter;
  index_t number;
};

/// `apart`: the entries of the first axis may be further apart than their size.
inline void expect(const char* argument, const ConstArray& array, dtype type, std::initializer_list<Extent> wanted, bool apart = false) {
  check_given(op, argument, array);
  if (array.type != type) fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected ", name(type));
  bool fits = array.rank == static_cast<int>(wanted.size());
  std::string text;
  index_t stride = 1;
  for (int axis = array.rank - 1; fits && axis >= 0; --axis) {
    fits = array.extents[axis] == std::data(wanted)[axis].number;
    if (fits && array.extents[axis] != 1 && array.size() > 0 && !(apart && axis == 0) && array.strides[axis] != stride)
      fail(status::value, op, ": ", argument, " is not contiguous; expected a contiguous array");
    stride *= array.extents[axis];
  }
  for (const Extent& extent : wanted) text += (text.empty() ? "" : ", ") + std::string(extent.letter) + "=" + std::to_string(extent.number);
  if (!fits)
    fail(status::value, op, ": ", argument, " has shape ", array.shape_text(), "; expected (", text, wanted.size() == 1 ? ",)" : ")");
}

inline void check_options(const options& how) {
  const auto at_least = [](const char* argument, index_t number, index_t least) {
    if (number < least) fail(status::value, op, ": ", argument, " is ", number, "; expected at least ", least);
  };
  at_least("k_top", how.k_top, -1);
  at_least("k_att", how.k_att, 1);
  at_least("k_trunc", how.k_trunc, 0);
  at_least("time", how.time, 0);
  at_least("max_memories", how.max_memories, 0);
}

/// The sizes that a call is about, from the arrays that bind them.
struct Sizes {
  index_t B, S, D, H, A, C, k, G;

  Sizes(const inputs& in, const parameters& by, const memory& kept, const options& how, index_t gates) : G(gates) {
    check_given(op, "x", in.x);
    check_given(op, "weight_hh", by.weight_hh);
    if (in.x.type != dtype::float32 && in.x.type != dtype::float64)
      fail(status::type, op, ": x has dtype ", name(in.x.type), "; expected float32 or float64");
    if (in.x.rank != 3) fail(status::value, op, ": x has shape ", in.x.shape_text(), "; expected (B, T, D)");
    if (by.weight_hh.rank != 2) fail(status::value, op, ": weight_hh has shape ", by.weight_hh.shape_text(), "; expected (G H, H)");
    B = in.x.extents[0], S = in.x.extents[1], D = in.x.extents[2], H = by.weight_hh.extents[1];
    A = how.form == rule::released ? 1 : by.w3.given() && by.w3.rank == 1 ? by.w3.extents[0] : 0;
    C = how.k_top != 0 ? kept.count + (how.time + S) / how.k_att - how.time / how.k_att : 0;
    k = how.k_top < 0 ? C : how.k_top;
  }
};

inline void check_forward(const inputs& in, const parameters& by, const memory& kept, const options& how, const const_tape& to,
                          const Sizes& n, bool apart) {
  const dtype type = in.x.type;
  expect("x", in.x, type, {{"B", n.B}, {"T", n.S}, {"D", n.D}});
  expect("hidden", in.hidden, type, {{"B", n.B}, {"H", n.H}});
  expect("carry", in.carry, type, {{"B", n.B}, {"H", n.H}});
  expect("weight_ih", by.weight_ih, type, {{"G H", n.G * n.H}, {"D", n.D}});
  expect("weight_hh", by.weight_hh, type, {{"G H", n.G * n.H}, {"H", n.H}});
  expect("bias_ih", by.bias_ih, type, {{"G H", n.G * n.H}});
  expect("bias_hh", by.bias_hh, type, {{"G H", n.G * n.H}});
  expect("gates", to.gates, type, {{"B", n.B}, {"T", n.S}, {"4 H", 4 * n.H}});
  expect("hhat", to.hhat, type, {{"B", n.B}, {"T", n.S}, {"H", n.H}});
  expect("h", to.h, type, {{"B", n.B}, {"T", n.S}, {"H", n.H}});
  expect("carries", to.carry, type, {{"B", n.B}, {"T", n.S}, {"H", n.H}});
  if (how.k_top == 0) return;
  if (how.form == rule::paper) {
    expect("w3", by.w3, type, {{"A", n.A}});
    expect("w1", by.w1, type, {{"A", n.A}, {"H", n.H}});
    expect("w2", by.w2, type, {{"A", n.A}, {"H", n.H}});
  } else {
    expect("w3", by.w3, type, {{"2 H", 2 * n.H}});
  }
  expect("states", kept.states, type, {{"B", n.B}, {"C", n.C}, {"H", n.H}}, apart);
  expect("keys", kept.keys, type, {{"B", n.B}, {"C", n.C}, {"A", n.A}}, apart);
  if (n.B > 1 && n.C > 0 && kept.states.strides[0] / n.H != kept.keys.strides[0] / n.A)
    fail(status::value, op, ": keys has room for ", kept.keys.strides[0] / n.A, " microstates; expected that of states, ",
         kept.states.strides[0] / n.H);
  expect("indices", to.indices, dtype::int64, {{"B", n.B}, {"T", n.S}, {"k + 1", n.k + 1}});
  expect("weights", to.weights, type, {{"B", n.B}, {"T", n.S}, {"k", n.k}});
  expect("total", to.total, type, {{"B", n.B}, {"T", n.S}});
}

template <class T>
RecurrenceProblem<T> problem_of(const inputs& in, const parameters& by, const memory& kept, const options& how, const const_tape& on,
                                const Sizes& n, index_t out_width) {
  const auto read = [](const ConstArray& array) { return static_cast<const T*>(array.data); };
  const auto written = [](const ConstArray& array) { return const_cast<T*>(static_cast<const T*>(array.data)); };
  RecurrenceProblem<T> p{};
  p.B = n.B, p.S = n.S, p.D = n.D, p.H = n.H, p.A = n.A, p.C = n.C, p.k = n.k, p.out_width = out_width;
  p.how = how;
  p.count = kept.count;
  p.room = n.B > 1 && n.C * n.H > 0 ? kept.states.strides[0] / n.H : n.C;
  p.x = read(in.x), p.hidden = read(in.hidden), p.carry = read(in.carry);
  p.weight_ih = read(by.weight_ih), p.weight_hh = read(by.weight_hh), p.bias_ih = read(by.bias_ih), p.bias_hh = read(by.bias_hh);
  p.w1 = read(by.w1), p.w2 = read(by.w2), p.w3 = read(by.w3);
  p.states = written(kept.states), p.keys = written(kept.keys);
  p.gates = written(on.gates), p.hhat = written(on.hhat), p.h = written(on.h), p.carries = written(on.carry);
  p.weights = written(on.weights), p.total = written(on.total);
  p.indices = const_cast<index_t*>(static_cast<const index_t*>(on.indices.data));
  return p;
}

inline index_t check_outputs(const char* argument, const ConstArray& outputs, const Sizes& n, const options& how, dtype type) {
  const bool alone = outputs.rank == 3 && outputs.extents[2] == n.H && how.k_top == 0;
  expect(argument, outputs, type, {{"B", n.B}, {"T", n.S}, {alone ? "H" : "2 H", alone ? n.H : 2 * n.H}});
  return alone ? n.H : 2 * n.H;
}

}  // namespace detail

/// All arrays are given (but those that k_top = 0 has no use for) and contiguous; `kept` has room for exactly the microstates
/// that there are and that come: C = count + the number of stored steps. outputs (B, T, 2 H) = [h, s], or (B, T, H) = h where k_top = 0.
/// `cell` is a name of `cells`. Cost of a row: O(T (D H + H^2 + A H) + T C A).
inline void forward(std::string_view cell, const inputs& in, const parameters& by, const memory& kept, const options& how,
                    const Array& outputs, const tape& to) {
  using namespace detail;
  check_options(how);
  visit_by_name(cells{}, op, "cell", cell, [&]<class Cell>() {
    const Sizes n(in, by, kept, how, Cell::gates);
    const const_tape on{to.gates, to.hhat, to.h, to.carry, to.indices, to.weights, to.total};
    check_forward(in, by, kept, how, on, n, true);
    const index_t width = check_outputs("outputs", outputs, n, how, in.x.type);
    visit_arithmetic(in.x.type, [&]<class T>() {
      const RecurrenceProblem<T> problem = problem_of<T>(in, by, kept, how, on, n, width);
      RecurrenceForward<T, Cell>(problem, static_cast<T*>(outputs.data)).run();
    });
  });
}

/// Gradients of sum(d_outputs * outputs), with the operands of `forward` and what it left in `kept` and `on`. d_x and all gradients of the
/// parameters that there are are given and contiguous. Cost: two forward passes without scores; O(T k A) instead of those.
inline void backward(std::string_view cell, const inputs& in, const parameters& by, const memory& kept, const options& how,
                     const const_tape& on, const ConstArray& d_outputs, const Array& d_x, const parameter_gradients& d_by) {
  using namespace detail;
  check_options(how);
  visit_by_name(cells{}, op, "cell", cell, [&]<class Cell>() {
    const Sizes n(in, by, kept, how, Cell::gates);
    check_forward(in, by, kept, how, on, n, false);
    const dtype type = in.x.type;
    const index_t width = check_outputs("d_outputs", d_outputs, n, how, type);
    expect("d_x", d_x, type, {{"B", n.B}, {"T", n.S}, {"D", n.D}});
    const std::tuple<const char*, const Array*, const ConstArray*> pairs[] = {
        {"d_weight_ih", &d_by.weight_ih, &by.weight_ih},
        {"d_weight_hh", &d_by.weight_hh, &by.weight_hh},
        {"d_bias_ih", &d_by.bias_ih, &by.bias_ih},
        {"d_bias_hh", &d_by.bias_hh, &by.bias_hh},
        {"d_w1", &d_by.w1, &by.w1},
        {"d_w2", &d_by.w2, &by.w2},
        {"d_w3", &d_by.w3, &by.w3},
    };
    for (const auto& [argument, wanted, operand] : pairs) {
      if (!operand->given()) continue;
      check_given(op, argument, *wanted);
      recollect::detail::check_gradient(op, argument, *wanted, *operand, type);
    }
    visit_arithmetic(type, [&]<class T>() {
      const RecurrenceProblem<T> problem = problem_of<T>(in, by, kept, how, on, n, width);
      const auto place = [](const Array& array) { return static_cast<T*>(array.data); };
      const RecurrenceGradients<T> to{place(d_x),          place(d_by.weight_ih), place(d_by.weight_hh), place(d_by.bias_ih),
                                      place(d_by.bias_hh), place(d_by.w1),        place(d_by.w2),        place(d_by.w3)};
      RecurrenceBackward<T, Cell>(problem, static_cast<const T*>(d_outputs.data), to).run();
    });
  });
}

}  // namespace recollect::backtracking
