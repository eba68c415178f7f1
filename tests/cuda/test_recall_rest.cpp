// SPDX-License-Identifier: BSD-3-Clause
/// Rows that come to rest on a device: to the last bit the rule of spec/hopfield.hpp applied to single steps of the same device.
#include "check.hpp"
#include "emulator_sm90.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/recall_gradients.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

struct Network {
  Tensor state, patterns, values, mask;
  double beta = 1, tol = 1e-2;
  Shape leading;

  hopfield::operands in(const Tensor& at, bool reads) const {
    return {at.in(), patterns.in(), reads ? values.in() : ConstArray{}, {}, mask.in()};
  }
  Shape shape(std::initializer_list<index_t> inner = {}) const {
    Shape s = leading;
    s.push_back(state.shape[state.shape.size() - 2]);
    s.insert(s.end(), inner);
    return s;
  }
  index_t rows() const {
    index_t count = 1;
    for (index_t extent : shape()) count *= extent;
    return count;
  }
  index_t width(bool reads) const { return (reads ? values : patterns).shape.back(); }
};

struct Told {
  Tensor out, energy, lse, steps, converged;

  Told(const Network& h, bool reads)
      : out(h.shape({h.width(reads)}), h.state.type),
        energy(h.shape()),
        lse(h.shape()),
        steps(h.shape(), dtype::float64),
        converged(h.shape(), dtype::boolean, 1) {}
  index_t& taken(index_t row) { return reinterpret_cast<index_t*>(steps.bytes.data())[row]; }
  hopfield::results places() {
    hopfield::results to{out.out(), energy.out(), lse.out(), steps.out(), converged.out(), {}};
    to.steps.type = dtype::int64;
    return to;
  }
};

/// Copies row `row` of dense tensors of the same type.
void take_row(Tensor& to, const Tensor& from, index_t row, index_t width) {
  const std::size_t bytes = static_cast<std::size_t>(width * bytes_of(to.type)), at = static_cast<std::size_t>(row) * bytes;
  std::copy_n(from.bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes, to.bytes.begin() + static_cast<std::ptrdiff_t>(at));
}

/// One step of the device after another, each row for as long as the rule says.
template <class Device>
Told expected(const Network& h, index_t steps) {
  const bool valued = h.values.given();
  const index_t width = h.width(false), updates = steps - valued;
  Told told(h, valued);
  Tensor state(h.shape({width}), h.state.type);
  Shape flat = state.shape;
  state.each([&](index_t place) { state.put(place, h.state.get(h.state.place(Tensor::unravel(place, flat)))); });
  std::vector<bool> moving(static_cast<std::size_t>(h.rows()), true);
  const auto tell = [&](const Told& one, index_t row) {
    for (auto part : {&Told::energy, &Told::lse}) take_row(told.*part, one.*part, row, 1);
  };
  for (index_t row = 0; row < h.rows(); ++row) told.taken(row) = 0, told.converged.put(row, 0);
  for (index_t step = 0; step < updates; ++step) {
    Told one(h, false);
    Device device(11);
    cuda::retrieve(device, h.in(state, false), h.beta, {"softmax", 1}, one.places());
    for (index_t row = 0; row < h.rows(); ++row) {
      if (!moving[static_cast<std::size_t>(row)]) continue;
      double moved = 0;
      for (index_t k = 0; k < width; ++k) moved += std::pow(one.out.get(row * width + k) - state.get(row * width + k), 2);
      ++told.taken(row);
      told.converged.put(row, std::sqrt(moved) <= h.tol);
      moving[static_cast<std::size_t>(row)] = std::sqrt(moved) > h.tol;
      take_row(state, one.out, row, width);
      tell(one, row);
    }
  }
  if (!valued) {
    told.out = state;
    return told;
  }
  Told one(h, true);
  Device device(12);
  cuda::retrieve(device, h.in(state, true), h.beta, {"softmax", 1}, one.places());
  told.out = one.out;
  for (index_t row = 0; row < h.rows(); ++row) tell(one, row), ++told.taken(row);
  return told;
}

/// The gradient by its definition in float64, of as many steps of each row as it took.
void check_gradient(const Network& h, index_t steps, Told& told, std::mt19937_64& random, const std::string& what) {
  const bool valued = h.values.given();
  const index_t width = h.width(false), updates = steps - valued;
  const Tensor d_out = test::random(told.out.shape, random, h.state.type);
  std::vector<std::array<Tensor, 3>> room;
  for (index_t s = 0; s < steps; ++s) room.push_back({Tensor(h.shape({width}), h.state.type), Tensor(h.shape()), Tensor(h.shape())});
  std::vector<cuda::RetrievalStep> kept;
  for (auto& [state, largest, log_sum] : room) kept.push_back({state.out(), {largest.out(), log_sum.out()}});
  kept.back().state = {};
  Tensor out(told.out.shape, told.out.type);
  hopfield::results to;
  to.state = out.out();
  const hopfield::parameters how{"softmax", steps, h.tol};
  emulator::Hopper device(13);
  cuda::retrieve(device, h.in(h.state, valued), h.beta, how, to, kept);
  CHECK(test::same(out, told.out));
  Tensor d_state(h.state.shape, h.state.type), d_patterns(h.patterns.shape, h.state.type), d_beta(Shape{}),
      d_values = valued ? Tensor(h.values.shape, h.state.type) : Tensor();
  cuda::retrieve_backward(device, h.in(h.state, valued), h.beta, how, kept, out.in(), d_out.in(),
                          {d_state.out(), d_patterns.out(), d_values.out(), d_beta.out(), {}});
  const auto at = [&](index_t step, const Tensor& values) {
    return Attention{
        step == 0 ? h.state : room[static_cast<std::size_t>(step - 1)][0], h.patterns, values, {}, h.mask, {}, h.beta, 0, h.leading};
  };
  Tensor d = d_out, patterns(h.patterns.shape, dtype::float64, 0), values(h.values.shape, dtype::float64, 0);
  double beta = 0;
  const auto add = [](Tensor& sum, const Tensor& more) {
    sum.each([&](index_t place) { sum.put(place, sum.get(place) + more.get(place)); });
  };
  const auto back = [&](Attention a, const Tensor& g) {
    a.scale = Tensor({}, dtype::float64, h.beta);
    test::Gradients found = test::attend_gradient(a, g);
    add(patterns, found.key);
    beta += found.scale.get(0);
    return found;
  };
  if (valued) {
    test::Gradients found = back(at(steps - 1, h.values), d);
    values = found.value;
    d = found.query;
  }
  for (index_t step = updates - 1; step >= 0; --step) {
    Tensor moved(d.shape, dtype::float64, 0), rested = moved;
    for (index_t i = 0; i < h.rows() * width; ++i) (told.taken(i / width) - valued > step ? moved : rested).put(i, d.get(i));
    Attention a = at(step, h.patterns);
    test::Gradients found = back(a, moved);
    add(patterns, found.value);
    if (step > 0) add(found.query, rested);
    d = found.query;
  }
  const double bound = h.state.type == dtype::float32 ? 5e-5 : h.state.type == dtype::float16 ? 6e-3 : 5e-2;
  const auto close = [&](const Tensor& got, const Tensor& wanted, const char* name) {
    check::near(test::difference(got, wanted) / test::largest(wanted), 0, bound, __FILE__, __LINE__, (what + ", " + name).c_str());
  };
  close(d_state, d, "d_state");
  close(d_patterns, patterns, "d_patterns");
  if (valued) close(d_values, values, "d_values");
  close(d_beta, Tensor({}, dtype::float64, beta), "d_beta");
}

template <class Device>
void check_rest(const Network& h, index_t steps, std::mt19937_64& random, const std::string& what, bool differ = true) {
  const bool valued = h.values.given();
  Told wanted = expected<Device>(h, steps);
  index_t least = steps, most = 0;
  for (index_t row = 0; row < h.rows(); ++row) least = std::min(least, wanted.taken(row)), most = std::max(most, wanted.taken(row));
  if (differ) check::that(least < most, __FILE__, __LINE__, what + ": all rows take as many steps");
  Told got(h, valued);
  Device device(14);
  cuda::retrieve(device, h.in(h.state, valued), h.beta, {"softmax", steps, h.tol}, got.places());
  for (const auto& [part, name] : {std::pair{&Told::out, "out"}, std::pair{&Told::energy, "energy"}, std::pair{&Told::lse, "lse"},
                                   std::pair{&Told::steps, "steps"}, std::pair{&Told::converged, "converged"}})
    check::that(test::same(got.*part, wanted.*part), __FILE__, __LINE__, what + ", " + name);
  if (h.rows() <= 12) check_gradient(h, steps, wanted, random, what);  // nothing in it knows of blocks
}

Network network(std::mt19937_64& random, index_t n, index_t N, index_t d, dtype type = dtype::float32) {
  Network h;
  h.leading = {2};
  h.state = test::random({2, n, d}, random, type);
  h.patterns = test::random({N, d}, random, type);
  h.beta = 4 / std::sqrt(static_cast<double>(d));
  return h;
}

void test_portable(std::mt19937_64& random) {
  Network h = network(random, 70, 20, 5);
  check_rest<emulator::Device>(h, 4, random, "blocks of rows");
  h = network(random, 4, 20, 5);
  check_rest<emulator::Device>(h, 1, random, "one step", false);
  h.values = test::random({2, 20, 7}, random);
  h.mask = Tensor({20}, dtype::boolean, 1);
  h.mask.put(3, 0);
  check_rest<emulator::Device>(h, 5, random, "values, a mask");
  check_rest<emulator::Device>(h, 1, random, "values in one step", false);
  h = network(random, 2, 600, 6);
  check_rest<emulator::Device>(h, 5, random, "parts of patterns");
  h.tol = 100;
  check_rest<emulator::Device>(h, 3, random, "at rest at once", false);
  h = network(random, 3, 9, 5);
  h.tol = 0;
  check_rest<emulator::Device>(h, 9, random, "not to the last bit", false);
  h = network(random, 3, 9, 5);
  h.mask = Tensor({3, 9}, dtype::boolean, 1);
  for (index_t j = 0; j < 9; ++j) h.mask.put(9 + j, 0);  // a row that sees nothing, and another number of steps than all others
  check_rest<emulator::Device>(h, 5, random, "nothing seen");
}

/// A state of NaN does not move on; others do.
void test_not_a_number(std::mt19937_64& random) {
  Network h = network(random, 3, 9, 5);
  for (index_t k = 0; k < 5; ++k) h.state.put(5 + k, test::nan);
  Told got(h, false), wanted = expected<emulator::Device>(h, 4);
  emulator::Device device(15);
  cuda::retrieve(device, h.in(h.state, false), h.beta, {"softmax", 4, h.tol}, got.places());
  CHECK_EQUAL(got.taken(1), 1);
  CHECK(got.converged.get(1) == 0);
  CHECK(test::same(got.steps, wanted.steps) && test::same(got.converged, wanted.converged));
}

void test_tensor_cores(std::mt19937_64& random) {
  check_rest<emulator::Hopper>(network(random, 65, 70, 64, dtype::float16), 4, random, "tensor cores");
  check_rest<emulator::Hopper>(network(random, 2, 600, 64, dtype::bfloat16), 4, random, "tensor cores, parts of patterns");
}

}  // namespace

int main() {
  std::mt19937_64 random(40);
  test_portable(random);
  test_not_a_number(random);
  test_tensor_cores(random);
  return check::report();
}
