// SPDX-License-Identifier: BSD-3-Clause
/// Memories that stay on a device: stored piece by piece, read without being packed; few rows, and scores within a bound.
#include "check.hpp"
#include "emulator_sm90.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/recall_bank.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Tensor;

double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(apart / size);
}

double length(const Tensor& rows, index_t row) {
  double square = 0;
  for (index_t k = 0; k < rows.shape[1]; ++k) square += rows.at({row}, {k}) * rows.at({row}, {k});
  return std::sqrt(square);
}

/// Rows of a tensor as one of their own; its bytes lie in the other's.
ConstArray rows_of(const Tensor& t, index_t first, index_t count) {
  ConstArray a = t.in();
  a.data = static_cast<const char*>(a.data) + first * t.strides[0] * bytes_of(t.type);
  a.extents[0] = count;
  return a;
}

template <class Device>
Tensor stored(const Tensor& rows, bool packed, std::initializer_list<index_t> ends) {
  const index_t N = rows.shape[0], width = rows.shape[1];
  const cuda::BankLine line = cuda::line_of(width, packed);
  Tensor bank({cuda::tiles_of(N, line.patterns), line.numbers}, rows.type);
  index_t first = 0;
  for (const index_t end : ends) {
    Device device(static_cast<std::uint64_t>(end));
    cuda::store("test", "patterns", device, rows_of(rows, first, end - first), bank.out(), first, packed);
    first = end;
  }
  return bank;
}

template <class Device>
Tensor recall(const Tensor& state, const Tensor& bank, const Tensor& values, index_t N, index_t width, bool packed, index_t steps) {
  Tensor out({state.shape[0], values.given() && !packed ? values.shape[1] : width}, state.type);
  Device device(7);
  hopfield::results to;
  to.state = out.out();
  cuda::retrieve_stored(device, {state.in(), bank.in(), values.in(), {}, {}}, 0.2, N, width, packed, {"softmax", steps}, to);
  return out;
}

/// Stored at once, or in pieces that begin and end within tiles: the same bytes; a tile's longest pattern; the same answers as without.
void test_stored(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16})
    for (const index_t width : {64, 128}) {
      const Tensor rows = test::random({300, width}, random, type, 1, 3), values = test::random({300, width}, random, type);
      const Tensor bank = stored<emulator::Hopper>(rows, true, {300});
      CHECK(test::same(bank, stored<emulator::Device>(rows, true, {100, 100, 130, 255, 256, 300})));
      for (index_t tile = 0; tile < 3; ++tile) {
        double longest = 0;
        for (index_t row = 128 * tile; row < std::min<index_t>(300, 128 * tile + 128); ++row)
          longest = std::max(longest, length(rows, row));
        float told = 0;
        std::memcpy(&told, bank.bytes.data() + tile * bank.strides[0] * 2 + 128 * width * 2, 4);
        CHECK_NEAR(told / longest, 1, 1e-6);
      }
      const Tensor state = test::random({5, width}, random, type), none;
      const Tensor value_bank = stored<emulator::Hopper>(values, true, {300});
      for (const bool valued : {false, true}) {
        Tensor out({5, width}, type);
        emulator::Hopper device(7);
        hopfield::results to;
        to.state = out.out();
        cuda::retrieve(device, {state.in(), rows.in(), valued ? values.in() : ConstArray(), {}, {}}, 0.2, {"softmax", 2}, to);
        CHECK(test::same(out, recall<emulator::Hopper>(state, bank, valued ? value_bank : none, 300, width, true, 2)));
      }
    }
}

/// Where nothing is packed rows lie one behind the other.
void test_plain(std::mt19937_64& random) {
  const Tensor state = test::random({4, 24}, random), rows = test::random({70, 24}, random, dtype::float32, 1, 5);
  const Tensor values = test::random({70, 9}, random, dtype::bfloat16);
  const Tensor bank = stored<emulator::Device>(rows, false, {30, 70}), value_bank = stored<emulator::Device>(values, false, {70});
  CHECK_EQUAL(test::difference(bank, rows), 0.0);
  CHECK_EQUAL(test::difference(value_bank, values), 0.0);
  Attention a;
  a.query = state, a.key = rows, a.value = values;
  a.scale_number = 0.2;
  CHECK_NEAR(error(recall<emulator::Device>(state, bank, value_bank, 70, 24, false, 1), test::attend(a).out), 0, 1e-6);
}

void test_refused(std::mt19937_64& random) {
  const Tensor rows = test::random({10, 64}, random, dtype::float16), state = test::random({4, 64}, random), none;
  const Tensor bank = stored<emulator::Hopper>(rows, true, {10});
  CHECK_FAILS(type, "hopfield.retrieve: state has dtype float32; expected float16, as the packed patterns",
              recall<emulator::Hopper>(state, bank, none, 10, 64, true, 1));
  CHECK_FAILS(value, "hopfield.retrieve: a bank of float16 has shape (1, 8256); expected (2, 8256) at least",
              recall<emulator::Hopper>(rows, bank, none, 129, 64, true, 1));
  CHECK_FAILS(value, "hopfield.retrieve: a bank of float16 has shape (1, 8256); expected (1, 16448) at least",
              recall<emulator::Hopper>(rows, bank, none, 10, 128, true, 1));
  CHECK(!cuda::packs_on(80, dtype::float16, 64, true) && !cuda::packs_on(90, dtype::float32, 64, true));
  CHECK(!cuda::packs_on(90, dtype::float16, 96, true) && !cuda::packs_on(90, dtype::float16, 64, false));
}

/// A block whose warpgroups share few rows and go around the ring more than once. Scores are taken relative to the bound where that is
/// small, and to the largest where it is not, or where what is read is short.
template <class T>
void test_parts(std::mt19937_64& random, index_t n, index_t N, double scale, double size, bool bounded) {
  using Kernel = cuda::RecallSm90<T, 64, true>;
  const dtype type = dtype_of<T>;
  Attention a;
  a.query = test::random({n, 64}, random, type);
  a.value = a.key = test::random({N, 64}, random, type, size);
  a.scale_number = scale;
  const Tensor bank = stored<emulator::Device>(a.key, true, {N});
  Tensor out({n, 64}, type), lse({n});
  const ConstArray list[] = {a.query.in(), a.key.in(), {}, {}, {}};
  const Shapes shapes("test", hopfield::operand_shapes, list);
  const recollect::detail::Fold fold(shapes, 'n', {1, 2});
  cuda::detail::RecallOperands given{"state", "patterns", "values", "beta", a.query.in(), a.key.in(), {}, {}, {}, 'N'};
  cuda::RecallArguments r = cuda::detail::arguments("test", given, scale, shapes, fold);
  r.out = cuda::detail::output(fold, out.out(), 0);
  r.lse = cuda::detail::output(fold, lse.out(), 0);
  r.splits = 2;
  std::vector<float> sums(static_cast<std::size_t>(2 * n * 64), NAN), states(static_cast<std::size_t>(4 * n), NAN);
  r.partial_sums = sums.data();
  r.partial_states = states.data();
  CHECK_EQUAL(Kernel::parts(r), 2);
  CHECK_EQUAL(Kernel::blocks({r, {}, {}}), 1);
  emulator::Hopper device(static_cast<std::uint64_t>(n));
  device.launch<Kernel>(1, Kernel::shared_bytes(), {r, reinterpret_cast<const char*>(bank.bytes.data()), nullptr});
  device.launch<cuda::RecallMerge>(cuda::RecallMerge::blocks(r), cuda::RecallMerge::shared_bytes(), r);
  const test::Answer answer = test::attend(a);
  const std::string what = std::string(name(type)) + ", scale " + check::shown(scale);
  check::near(error(out, answer.out), 0, type == dtype::bfloat16 ? 6e-3 : 1e-3, __FILE__, __LINE__, what.c_str());
  check::near(test::difference(lse, answer.lse), 0, 1e-4, __FILE__, __LINE__, what.c_str());
  double longest = 0;
  for (index_t row = 0; row < N; ++row) longest = std::max(longest, row / 128 % 2 == 0 ? length(a.key, row) : 0);
  const double bound = scale * length(a.query, 0) * longest * 1.4426950408889634;
  check::that((std::abs(states[0] / bound - 1) < 1e-5) == bounded, __FILE__, __LINE__, what + ": bounded or not");
}

}  // namespace

int main() {
  std::mt19937_64 random(91);
  test_stored(random);
  test_plain(random);
  test_refused(random);
  test_parts<bfloat16>(random, 3, 1900, 0.2, 1, true);
  test_parts<bfloat16>(random, 33, 1100, 2, 1, false);
  test_parts<bfloat16>(random, 33, 1100, 1e8, 1e-9, false);
  test_parts<float16>(random, 3, 1100, 0.04, 1, true);
  test_parts<float16>(random, 3, 1100, 0.2, 1, false);
  return check::report();
}
