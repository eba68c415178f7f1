// SPDX-License-Identifier: BSD-3-Clause
/// Wrong calls of the Hopfield ops: the status and the sentence.
#include "check.hpp"
#include <functional>
#include <limits>
#include <utility>

#include "recollect/ops/hopfield.hpp"

using namespace recollect;

namespace {

float numbers[256] = {};
double wide[256] = {};
float16 halves[256] = {};
bool flags[256] = {};
index_t whole[256] = {};
double two = 2;

Array f(std::initializer_list<index_t> shape) { return Array(numbers, shape); }
Array g(std::initializer_list<index_t> shape) { return Array(wide, shape); }
Array h(std::initializer_list<index_t> shape) { return Array(halves, shape); }
Array b(std::initializer_list<index_t> shape) { return Array(flags, shape); }
Array i(std::initializer_list<index_t> shape) { return Array(whole, shape); }

/// A call that is right, for others to differ from in one thing.
hopfield::operands right() { return {f({3, 4}), f({6, 4}), f({6, 2}), ConstArray(&two, {}), b({3, 6})}; }

template <class Change>
hopfield::operands with(Change&& change) {
  hopfield::operands in = right();
  change(in);
  return in;
}

void operands() {
  const auto refused = [](status code, const std::string& sentence, auto&& change, int line) {
    const hopfield::operands in = with(change);
    const auto array = [](auto&& call, const char* op) { return std::pair(std::function<void()>(call), std::string(op)); };
    for (const auto& [call, op] : {array([&] { hopfield::retrieve(in, {}, {}); }, "hopfield.retrieve"),
                                   array([&] { hopfield::energy(in, "softmax", {}); }, "hopfield.energy"),
                                   array([&] { hopfield::nearest(in, "softmax", i({3, 2}), f({3, 2})); }, "hopfield.nearest")})
      check::fails(code, op + ": " + sentence, __FILE__, line, call);
  };
  using in_t = hopfield::operands&;
  const auto value = status::value, type = status::type;
  refused(value, "state is missing", [](in_t in) { in.state = {}; }, __LINE__);
  refused(value, "patterns is missing", [](in_t in) { in.patterns = {}; }, __LINE__);
  refused(value, "beta is missing", [](in_t in) { in.beta = {}; }, __LINE__);
  refused(type, "state has dtype float16; expected float32 or float64", [](in_t in) { in.state = h({3, 4}); }, __LINE__);
  refused(
      type, "patterns has dtype float64; expected float32 as state, or float16 or bfloat16", [](in_t in) { in.patterns = g({6, 4}); },
      __LINE__);
  refused(type, "patterns has dtype float32; expected float64 as state", [](in_t in) { in.state = g({3, 4}); }, __LINE__);
  refused(
      type, "values has dtype float16; expected float64 as state",
      [](in_t in) { in.state = g({3, 4}), in.patterns = g({6, 4}), in.values = h({6, 2}); }, __LINE__);
  refused(type, "beta has dtype float32; expected float64", [](in_t in) { in.beta = f({}); }, __LINE__);
  refused(type, "mask has dtype int64; expected bool, true where attention is allowed", [](in_t in) { in.mask = i({3, 6}); }, __LINE__);
  refused(value, "patterns has shape (6, 5); expected (..., N, d=4)", [](in_t in) { in.patterns = f({6, 5}); }, __LINE__);
  refused(value, "values has shape (5, 2); expected (..., N=6, e)", [](in_t in) { in.values = f({5, 2}); }, __LINE__);
  refused(value, "state has shape (4,); expected (..., n, d)", [](in_t in) { in.state = f({4}); }, __LINE__);
  refused(
      value, "mask has shape (3, 5); expected (..., n=3, N=6) or a shape that broadcasts to it", [](in_t in) { in.mask = b({3, 5}); },
      __LINE__);
  const double bad[] = {0, -1, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()};
  const char* texts[] = {"0.0", "-1.0", "inf", "nan"};
  for (int k = 0; k < 4; ++k)
    refused(
        value, std::string("beta is ") + texts[k] + "; expected a positive finite number",
        [&](in_t in) { in.beta = ConstArray(&bad[k], {}); }, __LINE__);
  static const double some[] = {1, 2, -3};
  refused(value, "beta is -3.0; expected a positive finite number", [](in_t in) { in.beta = ConstArray(some, {3}); }, __LINE__);
}

void parameters_and_outputs() {
  const hopfield::operands in = right();
  CHECK_FAILS(value, "hopfield.retrieve: steps is 0; expected at least 1", hopfield::retrieve(in, {"softmax", 0, -1}, {}));
  CHECK_FAILS(value, "hopfield.retrieve: separation is 'soft'; expected " + names(separations{}),
              hopfield::retrieve(in, {"soft", 1, -1}, {}));
  CHECK_FAILS(value, "hopfield.energy: separation is ''; expected " + names(separations{}), hopfield::energy(in, "", {}));
  CHECK_FAILS(value, "hopfield.retrieve: out has shape (3, 4); expected (3, 2)",
              hopfield::retrieve(in, {}, {f({3, 4}), {}, {}, {}, {}, {}}));
  CHECK_FAILS(type, "hopfield.retrieve: out has dtype float64; expected float32",
              hopfield::retrieve(in, {}, {g({3, 2}), {}, {}, {}, {}, {}}));
  CHECK_FAILS(value, "hopfield.energy: energy has shape (3, 1); expected (3,)",
              hopfield::energy(in, "softmax", {{}, f({3, 1}), {}, {}, {}, {}}));
  CHECK_FAILS(value, "hopfield.energy: lse has shape (1,); expected (3,)", hopfield::energy(in, "softmax", {{}, {}, f({1}), {}, {}, {}}));
  CHECK_FAILS(type, "hopfield.retrieve: steps has dtype float32; expected int64", hopfield::retrieve(in, {}, {{}, {}, {}, f({3}), {}, {}}));
  CHECK_FAILS(type, "hopfield.retrieve: converged has dtype int64; expected bool",
              hopfield::retrieve(in, {}, {{}, {}, {}, {}, i({3}), {}}));
  CHECK_FAILS(value, "hopfield.retrieve: log_sum has shape (4,); expected (3,)",
              hopfield::retrieve(in, {}, {{}, {}, {}, {}, {}, {{}, f({4})}}));
  CHECK_FAILS(value, "hopfield.nearest: k is 7; expected a number from 1 to N=6", hopfield::nearest(in, "softmax", i({3, 7}), f({3, 7})));
  CHECK_FAILS(value, "hopfield.nearest: k is 0; expected a number from 1 to N=6", hopfield::nearest(in, "softmax", i({3, 0}), f({3, 0})));
  CHECK_FAILS(value, "hopfield.nearest: weights has shape (3, 1); expected (3, 2)", hopfield::nearest(in, "softmax", i({3, 2}), f({3, 1})));
  CHECK_FAILS(type, "hopfield.nearest: indices has dtype float32; expected int64", hopfield::nearest(in, "softmax", f({3, 2}), f({3, 2})));
}

void gradients() {
  const hopfield::operands in = right();
  const hopfield::saved kept{f({3}), f({3})};
  const auto back = [&](const ConstArray& out, const ConstArray& d_out, const hopfield::gradients& d_in) {
    hopfield::retrieve_backward(in, "softmax", kept, out, d_out, d_in);
  };
  CHECK_FAILS(value, "hopfield.retrieve: d_state has shape (4, 3); expected (3, 4)",
              back(f({3, 2}), f({3, 2}), {f({4, 3}), {}, {}, {}, {}}));
  CHECK_FAILS(type, "hopfield.retrieve: d_values has dtype float64; expected float32",
              back(f({3, 2}), f({3, 2}), {{}, {}, g({6, 2}), {}, {}}));
  CHECK_FAILS(type, "hopfield.retrieve: d_beta has dtype float32; expected float64", back(f({3, 2}), f({3, 2}), {{}, {}, {}, f({}), {}}));
  CHECK_FAILS(value, "hopfield.retrieve: d_beta has shape (1,); expected ()", back(f({3, 2}), f({3, 2}), {{}, {}, {}, g({1}), {}}));
  CHECK_FAILS(value, "hopfield.energy: d_out has shape (4,); expected (3,)", hopfield::energy_backward(in, "softmax", kept, f({4}), {}));
  CHECK_FAILS(value, "hopfield.energy: separation is 'loud'; expected " + names(separations{}),
              hopfield::energy_backward(in, "loud", kept, f({3}), {}));
}

}  // namespace

int main() {
  operands();
  parameters_and_outputs();
  gradients();
  return check::report();
}
