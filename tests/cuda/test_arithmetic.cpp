// SPDX-License-Identifier: BSD-3-Clause
/// The arithmetic that kernels are made of, where it can be tried out without any device: halves, parts, offsets, banks, lanes.
#include "check.hpp"
#include "tensor.hpp"
#include <set>

#include "recollect/core/shapes.hpp"
#include "recollect/cuda/lane.hpp"
#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tile.hpp"

namespace {

using namespace recollect;

template <class Half>
void test_halves() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float value = widen<float>(half);
    const Half back = cuda::narrow<Half>(value);
    if (value != value)
      CHECK(widen<float>(back) != widen<float>(back));
    else
      CHECK_EQUAL(back.bits, half.bits);
    // Halfway to the next number of the same sign the even one is taken, and just beside it the nearer one.
    const Half next{static_cast<std::uint16_t>(bits + 1)};
    const float above = widen<float>(next);
    if (!cuda::is_finite(value) || !cuda::is_finite(above)) continue;
    const double middle = (static_cast<double>(value) + above) / 2;
    const float tie = static_cast<float>(middle);
    CHECK_EQUAL(cuda::narrow<Half>(tie).bits, bits % 2 ? next.bits : half.bits);
    CHECK_EQUAL(cuda::narrow<Half>(std::nextafter(tie, value)).bits, half.bits);
    CHECK_EQUAL(cuda::narrow<Half>(std::nextafter(tie, above)).bits, next.bits);
  }
}

/// Parts follow each other without a gap, and there are never more than there is work for.
void test_parts() {
  for (index_t tiles : {0, 1, 5, 63, 64, 1000, 100000})
    for (index_t blocks : {1, 2, 31, 264, 100000}) {
      const index_t splits = cuda::splits_of(blocks, tiles);
      CHECK(splits >= 1 && splits <= 64 && (splits == 1 || tiles / splits >= 4));
      CHECK_EQUAL(cuda::first_tile(tiles, 0, splits), 0);
      CHECK_EQUAL(cuda::first_tile(tiles, splits, splits), tiles);
      for (index_t s = 0; s < splits; ++s) CHECK(cuda::first_tile(tiles, s, splits) <= cuda::first_tile(tiles, s + 1, splits));
    }
}

void test_offsets(std::mt19937_64& random) {
  for (int round = 0; round < 200; ++round) {
    cuda::RecallArguments a;
    cuda::Operand<const void> x, y;
    for (int axis = 0; axis < 3; ++axis) {
      a.outer_axes.add(1 + static_cast<index_t>(random() % 5));
      a.row_axes.add(1 + static_cast<index_t>(random() % 5));
      for (auto* strides : {&x.at.outer, &x.at.row, &y.at.outer, &y.at.row}) (*strides)[axis] = static_cast<index_t>(random() % 100) - 50;
    }
    const index_t o = static_cast<index_t>(random()) % a.outer_axes.count(), r = static_cast<index_t>(random()) % a.row_axes.count();
    if (o < 0 || r < 0) continue;
    const auto [of_x, of_y] = a.offsets(o, r, x, y);
    CHECK_EQUAL(of_x, a.outer_axes.offset(o, x.at.outer) + a.row_axes.offset(r, x.at.row));
    CHECK_EQUAL(of_y, a.outer_axes.offset(o, y.at.outer) + a.row_axes.offset(r, y.at.row));
  }
}

/// limit(first, last) is the largest limit of the rows between.
void test_limits() {
  cuda::RecallArguments a;
  a.patterns = 9;
  a.row_axes.add(3);
  a.row_axes.add(7);
  for (index_t shift : {-3, 0, 2, 6}) {
    a.causal = {true, shift};
    for (index_t first = 0; first < 21; ++first)
      for (index_t last = first; last < 21; ++last) {
        index_t largest = 0;
        for (index_t r = first; r <= last; ++r) largest = std::max(largest, std::clamp<index_t>(r % 7 + 1 + shift, 0, 9));
        CHECK_EQUAL(a.limit(first, last), largest);
      }
  }
}

/// What a quarter of a warp reads at once, four numbers for each of eight lanes, lies in 32 different banks or is the same.
template <class T>
void test_banks() {
  const auto conflicts = [](auto&& word_of) {
    int most = 0;
    for (int first = 0; first < 32; first += 8) {
      std::set<int> words;
      for (int lane = first; lane < first + 8; ++lane) words.insert(word_of(lane));
      int uses[32] = {};
      for (int word : words)
        for (int i = 0; i < 4; ++i) most = std::max(most, ++uses[(word + i) % 32]);
    }
    return most;
  };
  CHECK_EQUAL(conflicts([](int lane) { return lane % cuda::square * T::pitch; }), 1);         // rows of b in products
  CHECK_EQUAL(conflicts([](int lane) { return lane / cuda::square * T::pitch; }), 1);         // rows of a
  CHECK_EQUAL(conflicts([](int lane) { return lane / cuda::square * T::weight_pitch; }), 1);  // weights
  CHECK_EQUAL(conflicts([](int lane) { return lane % cuda::square * 4; }), 1);                // columns of a row
  static_assert(T::pitch % 4 == 0 && T::weight_pitch % 4 == 0 && T::floats % 4 == 0 && T::weight_floats % 4 == 0, "Four is aligned");
}

/// Feature maps of a lane are those of the definition, in the order of the list.
void test_maps() {
  const auto value = [](const char* name, float x) { return cuda::map_value(feature_maps{}, cuda::map_number(feature_maps{}, name), x); };
  for (float x = -30; x < 30; x += 0.37f) {
    CHECK_EQUAL(value("identity", x), x);
    CHECK_EQUAL(value("relu", x), x > 0 ? x : 0);
    CHECK_EQUAL(value("squared_relu", x), x > 0 ? x * x : 0);
    const double elu = x > 0 ? 1.0 + x : std::exp(static_cast<double>(x));
    CHECK_NEAR(value("elu1", x), elu, 2e-7 * elu);
  }
  CHECK(std::isnan(value("elu1", std::nanf(""))));
  CHECK_EQUAL(value("elu1", -cuda::infinity), 0.0f);
  for (const char* name : {"softmax", "l2", "dpfp", "favor", "nothing"}) CHECK_EQUAL(cuda::map_number(feature_maps{}, name), -1);
}

}  // namespace

int main() {
  std::mt19937_64 random(22);
  test_halves<float16>();
  test_halves<bfloat16>();
  CHECK_EQUAL(widen<float>(cuda::narrow<float16>(65519.0f)), 65504.0f);
  CHECK_EQUAL(widen<float>(cuda::narrow<float16>(-65520.0f)), -cuda::infinity);
  CHECK_EQUAL(widen<float>(cuda::narrow<bfloat16>(std::numeric_limits<float>::max())), cuda::infinity);
  test_parts();
  test_offsets(random);
  test_limits();
  test_banks<cuda::Tile<64, 4>>();
  test_banks<cuda::Tile<128, 2>>();
  test_banks<cuda::Tile<256, 1>>();
  test_maps();
  return check::report();
}
