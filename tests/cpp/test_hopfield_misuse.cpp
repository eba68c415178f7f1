// SPDX-License-Identifier: BSD-3-Clause
/// Calls at the edge of what can be said: none may read or write beside its arrays, and what cannot be done is refused.
#include "hopfield_oracle.hpp"
#include <bit>
#include <functional>
#include <limits>
#include <string>
#include <unistd.h>

#include <sys/wait.h>

#include "recollect/ops/hopfield.hpp"

using namespace oracle;

namespace {

float numbers[256] = {};
double two = 2;
index_t whole[64] = {};

Array f(std::initializer_list<index_t> shape) { return Array(numbers, shape); }

hopfield::operands right() { return {f({3, 4}), f({6, 4}), f({6, 32}), ConstArray(&two, {}), {}}; }

/// Refused as a wrong value; the sentence is free, but names the argument.
template <class Call>
void refused(const char* argument, int line, Call&& call) {
  try {
    call();
    check::that(false, __FILE__, line, std::string("nothing thrown about ") + argument);
  } catch (const error& thrown) {
    check::that(thrown.code() == status::value && std::string(thrown.what()).find(argument) != std::string::npos, __FILE__, line,
                thrown.what());
  } catch (const std::exception& thrown) {
    check::that(false, __FILE__, line, std::string("another exception: ") + thrown.what());
  }
}

void numbers_in_sentences() {
  for (double beta : {-5e-324, -std::numeric_limits<double>::max()}) {
    hopfield::operands in = right();
    in.beta = ConstArray(&beta, {});
    refused("beta", __LINE__, [&] { hopfield::retrieve(in, {}, {}); });
  }
}

/// NaN is NaN whatever its lower bits are; it must not be passed over.
template <class T, class Bits>
void any_nan_is_told() {
  const T nan = std::bit_cast<T>(Bits(std::bit_cast<Bits>(std::numeric_limits<T>::quiet_NaN()) | 1));
  for (const bool in_state : {true, false}) {
    std::vector<T> state{1, 2, 3, 4}, patterns(200 * 2, T(0.5)), values(200 * 3, T(1));
    (in_state ? state[0] : patterns[2 * 5]) = nan;
    T out[6], energy[2], lse[2];
    const hopfield::operands in{ConstArray(state.data(), {2, 2}),
                                ConstArray(patterns.data(), {200, 2}),
                                ConstArray(values.data(), {200, 3}),
                                ConstArray(&two, {}),
                                {}};
    hopfield::retrieve(in, {}, {Array(out, {2, 3}), Array(energy, {2}), Array(lse, {2}), {}, {}, {}});
    CHECK(std::isnan(out[0]) && std::isnan(energy[0]) && std::isnan(lse[0]));
    CHECK(std::isnan(out[3]) == !in_state && std::isnan(energy[1]) == !in_state && std::isnan(lse[1]) == !in_state);
  }
}

/// Eight leading axes leave no room for the two of the state.
void too_many_axes() {
  hopfield::operands in = right();
  in.beta = ConstArray(&two, {1, 1, 1, 1, 1, 1, 1, 1});
  refused("axes", __LINE__, [&] { hopfield::retrieve(in, {}, {f({3, 32}), {}, {}, {}, {}, {}}); });
}

/// An energy reads nothing, so there is nothing to put where a read goes.
void energy_without_a_read() {
  std::vector<float> out(3 * 32);
  refused("state", __LINE__, [&] { hopfield::energy(right(), "softmax", {Array(out.data(), {3, 32}), {}, {}, {}, {}, {}}); });
}

/// One call for each thing that a gradient or a selection cannot do without, or cannot give.
void what_is_needed(int which) {
  hopfield::operands in = right(), no_values = in, negative = in;
  no_values.values = {};
  const double below = -2;
  negative.beta = ConstArray(&below, {});
  const hopfield::gradients d_in{f({3, 4}), {}, {}, {}, {}}, d_values{{}, {}, f({6, 4}), {}, {}};
  const hopfield::saved kept{f({3}), f({3})};
  const ConstArray read = f({3, 32}), row = f({3});
  const auto of_read = [&](const ConstArray& out, const ConstArray& d_out) {
    hopfield::retrieve_backward(in, "softmax", kept, out, d_out, d_in);
  };
  const auto of_energy = [&](const hopfield::saved& saved, const ConstArray& d) {
    hopfield::energy_backward(in, "softmax", saved, d, d_in);
  };
  switch (which) {
    case 0:
      return refused("out", __LINE__, [&] { of_read({}, row); });
    case 1:
      return refused("out", __LINE__, [&] { of_read(f({3, 1}), read); });
    case 2:
      return refused("d_out", __LINE__, [&] { of_read(read, {}); });
    case 3:
      return refused("d_out", __LINE__, [&] { of_energy(kept, {}); });
    case 4:
      return refused("largest", __LINE__, [&] { of_energy({}, row); });
    case 5:
      return refused("log_sum", __LINE__, [&] { of_energy({f({3}), {}}, row); });
    case 6:
      return refused("values", __LINE__, [&] { hopfield::retrieve_backward(no_values, "softmax", kept, f({3, 4}), f({3, 4}), d_values); });
    case 7:
      return refused("beta", __LINE__, [&] { hopfield::energy_backward(negative, "softmax", kept, row, d_in); });
    case 8:
      return refused("weights", __LINE__, [&] { hopfield::nearest(in, "softmax", Array(whole, {3, 2}), {}); });
    case 9:
      return refused("indices", __LINE__, [&] { hopfield::nearest(in, "softmax", {}, f({3, 2})); });
    default:
      return refused("state", __LINE__, [&] { in.state = f({-3, 4}), hopfield::energy(in, "softmax", {}); });
  }
}

/// A crash is one failure among others: every part runs in a process of its own.
void alone(const char* name, const std::function<void()>& part) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    check::failed = 0;
    part();
    std::fflush(stdout);
    _exit(check::failed ? 1 : 0);
  }
  int result = 1;
  waitpid(child, &result, 0);
  check::that(result == 0, __FILE__, __LINE__, std::string(name) + (WIFSIGNALED(result) ? " crashes" : " fails"));
}

}  // namespace

int main() {
  alone("numbers in sentences", numbers_in_sentences);
  alone("NaN in float", any_nan_is_told<float, std::uint32_t>);
  alone("NaN in double", any_nan_is_told<double, std::uint64_t>);
  alone("too many axes", too_many_axes);
  alone("energy without a read", energy_without_a_read);
  for (int which = 0; which <= 10; ++which)
    alone(("what is needed, case " + std::to_string(which)).c_str(), [&] { what_is_needed(which); });
  return check::report();
}
