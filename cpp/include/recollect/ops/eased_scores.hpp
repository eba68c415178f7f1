// SPDX-License-Identifier: BSD-3-Clause
/// The additive score of one query against many rows of keys that were prepared for it: what a key takes once saves an exponential for
/// every number of every score.
///
/// With what is prepared of a key and a query, x and f, of two units each, w0 tanh(p0 + q0) + w1 tanh(p1 + q1) is one quotient,
///     (a + b x0 + (c + d x0) x1) / ((1 + f0 x0) (1 + f1 x1)),    a, b, c, d of the query and w alone:
///     x = tanh p, f = tanh q:    a = w0 f0 + w1 f1     b = w0 + w1 f0 f1     c = w1 + w0 f0 f1     d = w0 f1 + w1 f0
///     x = e^2p,   f = e^2q:      a = -(w0 + w1)        b = (w0 - w1) f0      c = (w1 - w0) f1      d = (w0 + w1) f0 f1
/// Several of them share a division. Which of the two it is, and how many share, follows from the size of the numbers of a row:
///     near       |p| <= 3/4: tanh, with which nothing cancels where p and q are small, and 1 + x f is far from 0 whatever the other one is
///     moderate   |p| <= 5: e^2p; products of four denominators stay in range
///     large      |p| <= 10: e^2p; products of two do
///     far        tanh, for a query that is near; with others the score is made of p and q themselves
/// This depends on the two rows alone, and so do all bits of a score. w is w3 over a power of two, so that none is above 2: the range that
/// is left for numerators does not depend on w3.
#pragma once

#include <algorithm>
#include <cmath>

#include "recollect/core/scratch.hpp"
#include "recollect/ops/sparse_scores.hpp"

namespace recollect::backtracking {

/// e^2p to the last digit for any |p| <= 10: e^2p e^2q - 1 is no better than its factors where p and q cancel. So f of 2^n 2^f is made of
/// the unrounded product, and nothing is subtracted on the way, which would leave no digits of a small one.
template <class T, class V>
inline V exp_of_twice(V p) {
  using constants = math::exp2_constants<T>;
  constexpr int degree = sizeof(constants::c) / sizeof(T);
  constexpr long double scale = 2 * math::log2_e<long double>;
  constexpr T high = static_cast<T>(scale), low = static_cast<T>(scale - high);
  const V shifted = fma(p, V(high), V(constants::exponent_shift));
  const V n = shifted - V(constants::exponent_shift);
  const V f = fma(p, V(low), fma(p, V(high), n * V(T(-1))));
  V series = V(constants::c[degree - 1]);
  for (int i = degree - 2; i >= 0; --i) series = fma(series, f, V(constants::c[i]));
  const V power = power_of_two(n, shifted);
  return fma(series * f, power, power);
}

enum class ease : unsigned char { near, moderate, large, far };

template <class T>
ease ease_of(const T* row, index_t width) {
  using P = Packet<T>;
  P most(T(0));
  for (index_t a = 0; a < width; a += P::width) most = max(turn(negative_size(P::load_some(row + a, width - a)), P(T(-0.0))), most);
  const T size = largest(most);
  return size <= T(0.75) ? ease::near : size <= T(5) ? ease::moderate : size <= T(10) ? ease::large : ease::far;
}

template <class T>
class EasedScores {
 public:
  using P = Packet<T>;

  /// Room for `rows` keys of this width.
  EasedScores(const T* w3, index_t width, index_t rows)
      : w3_(w3), width_(width), pairs_((width + pair - 1) / pair), rows_(rows * pairs_ * pair), kinds_(rows), w_(pairs_ * pair) {
    T size = 0;
    for (index_t a = 0; a < width; ++a) size = std::max(size, std::abs(w3[a]));
    if (size > 0 && std::isfinite(size)) scale_ = std::ldexp(T(1), std::ilogb(size));
    for (index_t a = 0; a < pairs_ * pair; ++a) w_.data()[a] = a < width ? w3[a] / scale_ : T(0);
  }

  void prepare(index_t row, const T* key) const {
    const ease kind = kinds_.data()[row] = ease_of(key, width_);
    T* const to = rows_.data() + row * pairs_ * pair;
    for (index_t a = 0; a < pairs_ * pair; a += P::width) {
      const P p = some(key, a);
      (kind == ease::near || kind == ease::far ? math::tanh<T>(p) : exp_of_twice<T>(p)).store(to + a);
    }
  }

  /// scores[i] of `count` keys, prepared as the rows from `first` on.
  void score(index_t first, index_t count, const T* keys, const T* query, T* scores) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const ease kind = ease_of(query, width_);
    // A list of the keys for each way, made without branches, which would be as hard to foresee as the sizes of keys are.
    const way with_moderate = kind == ease::far ? plain : kind == ease::large ? twos : fours;
    const way ways[] = {near, with_moderate, std::max(with_moderate, twos), kind == ease::near ? near : plain};
    index_t* lists[4];
    index_t counts[4] = {};
    for (index_t*& list : lists) list = scratch.take<index_t>(count);
    for (index_t i = 0; i < count; ++i) {
      const way of_key = ways[static_cast<int>(kinds_.data()[first + i])];
      lists[of_key][counts[of_key]++] = i;
    }
    for (index_t i = 0; i < counts[plain]; ++i)
      scores[lists[plain][i]] = additive_score::of(keys + lists[plain][i] * width_, query, w3_, width_);
    T* const of_query = scratch.take<T>(3 * pairs_ * pair);
    const T* const rows = rows_.data() + first * pairs_ * pair;
    if (counts[near] > 0) {
      prepare_query<true>(query, of_query);
      run<2>(lists[near], counts[near], rows, of_query, scores);
    }
    if (counts[fours] + counts[twos] > 0) {
      prepare_query<false>(query, of_query);
      run<2>(lists[fours], counts[fours], rows, of_query, scores);
      run<1>(lists[twos], counts[twos], rows, of_query, scores);
    }
  }

 private:
  static constexpr index_t pair = 2 * P::width;
  static constexpr index_t at_once = 16;  // keys

  enum way : int { near, fours, twos, plain };  // how a score is made

  P some(const T* row, index_t a) const { return P::load_some(row + a, std::clamp<index_t>(width_ - a, 0, P::width)); }

  /// f0, f1, a, b, c, d for each two packets of units.
  template <bool Near>
  void prepare_query(const T* query, T* to) const {
    const auto eased = [&](index_t a) { return Near ? math::tanh<T>(some(query, a)) : exp_of_twice<T>(some(query, a)); };
    for (index_t a = 0; a < pairs_ * pair; a += pair, to += 3 * pair) {
      const P w0 = P::load(w_.data() + a), w1 = P::load(w_.data() + a + P::width), f0 = eased(a), f1 = eased(a + P::width), both = f0 * f1;
      P made[6] = {f0, f1, fma(w0, f0, w1 * f1), fma(w1, both, w0), fma(w0, both, w1), fma(w0, f1, w1 * f0)};
      if constexpr (!Near) {
        made[2] = turn(w0 + w1, P(T(-0.0)));
        made[3] = (w0 - w1) * f0;
        made[4] = (w1 - w0) * f1;
        made[5] = (w0 + w1) * both;
      }
      for (int i = 0; i < 6; ++i) made[i].store(to + i * P::width);
    }
  }

  /// The scores of some keys, so many at a time that they stay in cache while one part of the query after the other is held in registers.
  template <int Pairs>
  void run(const index_t* list, index_t count, const T* rows, const T* of_query, T* scores) const {
    alignas(Scratch::alignment) T totals[at_once * P::width];
    T sums[at_once];
    const T* row[at_once];
    for (index_t i = 0; i < count; i += at_once) {
      const index_t now = std::min(at_once, count - i);
      for (index_t j = 0; j < now; ++j) row[j] = rows + list[i + j] * pairs_ * pair;
      std::fill_n(totals, at_once * P::width, T(0));
      index_t done = 0;
      for (; done + Pairs <= pairs_; done += Pairs) add_quotients<Pairs>(row, done, now, of_query + done * 3 * pair, totals);
      for (; done < pairs_; ++done) add_quotients<1>(row, done, now, of_query + done * 3 * pair, totals);
      sum_lanes(totals, now, sums);
      for (index_t j = 0; j < now; ++j) scores[list[i + j]] = scale_ * sums[j];
    }
  }

  /// Adds those of the pairs from `first` on, which share a division, to the totals of `count` keys.
  template <int Pairs>
  static void add_quotients(const T* const* rows, index_t first, index_t count, const T* of_query, T* totals) {
    P of[Pairs * 6];
    for (int i = 0; i < Pairs * 6; ++i) of[i] = P::load(of_query + i * P::width);
    for (index_t j = 0; j < count; ++j) {
      const T* const row = rows[j] + first * pair;
      math::quotient<P> q = quotient_of(row, of);
      if constexpr (Pairs == 2) {
        const math::quotient<P> next = quotient_of(row + pair, of + 6);
        q = {fma(q.numerator, next.denominator, next.numerator * q.denominator), q.denominator * next.denominator};
      }
      (P::load(totals + j * P::width) + q.numerator / q.denominator).store(totals + j * P::width);
    }
  }

  [[gnu::always_inline]] static math::quotient<P> quotient_of(const T* row, const P* of) {
    const P x0 = P::load(row), x1 = P::load(row + P::width), one(T(1));
    return {fma(x1, fma(of[5], x0, of[4]), fma(of[3], x0, of[2])), fma(of[0], x0, one) * fma(of[1], x1, one)};
  }

  static void sum_lanes(const T* totals, index_t count, T* sums) {
    for (index_t j = 0; j < count; j += 4) {
      P four[4];
      for (int i = 0; i < 4; ++i) four[i] = P::load(totals + (j + i) * P::width);
      lane_sums<T>(four, sums + j);
    }
  }

  const T* w3_;
  index_t width_, pairs_;
  T scale_ = 1;
  Buffer<T> rows_;
  Buffer<ease> kinds_;
  Buffer<T> w_;
};

}  // namespace recollect::backtracking
