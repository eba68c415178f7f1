// SPDX-License-Identifier: BSD-3-Clause
/// Numbers and rows: 2^x in packets, the softmax in pieces, the k largest, stored halves, names.
#include "check.hpp"
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "recollect/math/exp2.hpp"
#include "recollect/math/online_softmax.hpp"
#include "recollect/math/separation.hpp"
#include "recollect/math/top_k.hpp"
#include "recollect/ops/packet.hpp"

using namespace recollect;

namespace {

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();

template <class T>
T packet_exp2(T x) {
  T lanes[Packet<T>::width];
  math::exp2<T>(Packet<T>(x)).store(lanes);
  for (T lane : lanes) CHECK(std::memcmp(&lane, lanes, sizeof(T)) == 0);
  return lanes[0];
}

/// The largest error in units in the last place over the normal range, which must not exceed `allowed`.
template <class T>
void exp2_in_packets(double allowed) {
  using limits = std::numeric_limits<T>;
  double worst = 0;
  const int steps = 60000;
  const T normal = limits::min_exponent - 1;  // 2^normal is the smallest normal number
  for (int i = 0; i <= steps; ++i) {
    const T x = normal * static_cast<T>(i) / steps;
    const long double exact = exp2l(static_cast<long double>(x));
    const long double unit = ldexpl(1, ilogbl(exact) + 1 - limits::digits);
    worst = std::max(worst, static_cast<double>(fabsl(static_cast<long double>(packet_exp2(x)) - exact) / unit));
  }
  std::printf("exp2 of %d-bit numbers: at most %.3f units in the last place\n", int(8 * sizeof(T)), worst);
  CHECK(worst <= allowed);
  for (int i = 0; i <= 1000; ++i)  // below it, no worse than a small number lost
    CHECK_NEAR(packet_exp2<T>(normal - T(i) / 100), std::exp2(double(normal) - i / 100.0), double(limits::min()));
  for (int n = 0; n > normal; n -= 7) CHECK_EQUAL(packet_exp2<T>(T(n)), std::ldexp(T(1), n));
  const T lowest = math::exp2_constants<T>::lowest;
  for (T x : {lowest, lowest - 1, lowest * 1000, limits::lowest(), -infinity<T>}) CHECK_EQUAL(packet_exp2<T>(x), T(0));
  CHECK_EQUAL(packet_exp2<T>(T(-0.0)), T(1));
}

template <class T, class Bits>
void exp2_of_nan(Bits quiet) {
  for (Bits payload : {0, 1, 2, 3, 255, 256, 511, 12345})
    for (Bits sign : {Bits(0), Bits(1) << (8 * sizeof(T) - 1)})
      CHECK(std::isnan(packet_exp2(std::bit_cast<T>(Bits(quiet | sign | payload)))));
}

template <class T>
using Softmax = math::OnlineSoftmax<T>;

template <class T>
void push(Softmax<T>& s, T score) {
  s.raise(score);
  s.sum += std::exp2(score - s.reference());
}

template <class T>
Softmax<T> merged(Softmax<T> a, Softmax<T> b) {
  a.raise(b.largest);
  b.raise(a.largest);
  a.sum += b.sum;
  return a;
}

template <class T>
void online_softmax(double bound) {
  std::mt19937 random(1);
  std::vector<T> scores(300);
  for (T& s : scores) s = random() % 10 == 0 ? -infinity<T> : static_cast<T>(random() % 4000) / 20 - 100;
  double sum = 0;
  for (T s : scores) sum += std::exp2(static_cast<double>(s));
  Softmax<T> whole, pieces;
  for (std::size_t i = 0, length = 1; i < scores.size(); length = length % 7 + 1) {
    Softmax<T> piece;
    for (std::size_t end = std::min(i + length, scores.size()); i < end; ++i) push(whole, scores[i]), push(piece, scores[i]);
    pieces = merged(pieces, piece);
  }
  CHECK_NEAR(whole.log_sum(), std::log2(sum), bound);
  CHECK_NEAR(pieces.log_sum(), std::log2(sum), bound);
  CHECK_EQUAL(whole.largest, *std::max_element(scores.begin(), scores.end()));
  const Softmax<T> none, left = merged(none, whole), right = merged(whole, none);
  for (const Softmax<T>& same : {left, right}) CHECK(same.largest == whole.largest && same.sum == whole.sum);
  CHECK(merged(none, none).sum == 0 && none.reference() == 0 && none.log_sum() == -infinity<double>);
  Softmax<T> s;
  CHECK_EQUAL(s.raise(-infinity<T>), T(1));
  CHECK_EQUAL(s.raise(T(3)), T(0));
  s.sum = 8;
  CHECK_EQUAL(s.raise(T(5)), T(0.25));
  CHECK_EQUAL(s.sum, T(2));
  CHECK_EQUAL(s.raise(T(4)), T(1));
}

void top_k() {
  std::mt19937 random(2);
  for (std::int64_t count : {0, 1, 5, 40, 200})
    for (std::int64_t k : {1, 2, 7, 60}) {
      std::vector<float> scores(count);
      for (float& s : scores) s = static_cast<float>(random() % 12);  // with many ties
      std::vector<std::int64_t> order(count);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
      std::vector<float> best(k), piece_best(k);
      std::vector<std::int64_t> index(k), piece_index(k);
      const math::TopK<float> kept{best.data(), index.data(), k}, piece{piece_best.data(), piece_index.data(), k};
      for (std::int64_t length : {1L, 3L, 17L, 1000L}) {
        kept.reset();
        for (std::int64_t i = 0; i < count;) {
          piece.reset();
          for (const std::int64_t end = std::min(i + length, count); i < end; ++i) piece.offer(scores[i], i);
          kept.merge(piece);
        }
        for (std::int64_t i = 0; i < k; ++i) CHECK_EQUAL(index[i], i < count ? order[i] : -1);
        for (std::int64_t i = 0; i < k; ++i) CHECK_EQUAL(best[i], i < count ? scores[order[i]] : -infinity<float>);
      }
    }
}

}  // namespace

int main() {
  exp2_in_packets<float>(1.5);
  exp2_in_packets<double>(1.5);
  exp2_of_nan<float, std::uint32_t>(0x7fc00000u);
  exp2_of_nan<double, std::uint64_t>(0x7ff8000000000000u);
  online_softmax<float>(2e-5);
  online_softmax<double>(1e-13);
  top_k();
  return check::report();
}
