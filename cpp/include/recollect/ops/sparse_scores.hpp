// SPDX-License-Identifier: BSD-3-Clause
/// How a query is compared with what is stored with a memory, one number out of two rows, and the gradient of that. Equations:
/// spec/backtracking.hpp. `w3` is null where a score has no parameter.
#pragma once

#include <algorithm>

#include "recollect/math/tanh.hpp"
#include "recollect/ops/packet.hpp"

namespace recollect::backtracking {

/// w3 . tanh(key + query)
struct additive_score {
  template <class T>
  static T of(const T* key, const T* query, const T* w3, index_t width) {
    using P = Packet<T>;
    P total(T(0));
    index_t a = 0;
    for (; a + 4 * P::width <= width; a += 4 * P::width) {
      math::quotient<P> q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const index_t at = a + j * P::width;
        q[j] = math::tanh_quotient<T>(P::load(key + at) + P::load(query + at));
        q[j].numerator = q[j].numerator * P::load(w3 + at);
      }
      // One division for four quotients; their denominators are from 1 to 2.
      const P first = fma(q[0].numerator, q[1].denominator, q[1].numerator * q[0].denominator);
      const P second = fma(q[2].numerator, q[3].denominator, q[3].numerator * q[2].denominator);
      const P below_first = q[0].denominator * q[1].denominator, below_second = q[2].denominator * q[3].denominator;
      total = total + fma(first, below_second, second * below_first) / (below_first * below_second);
    }
    for (; a < width; a += P::width) {
      const index_t some = width - a;
      const P t = math::tanh<T>(P::load_some(key + a, some) + P::load_some(query + a, some));
      total = fma(P::load_some(w3 + a, some), t, total);
    }
    return sum(total);
  }

  /// Adds to all three gradients, of which d_w3 and d_key may be null.
  template <class T>
  static void backward(T d_score, const T* key, const T* query, const T* w3, index_t width, T* d_key, T* d_query, T* d_w3) {
    using P = Packet<T>;
    const P d(d_score), one(T(1));
    for (index_t a = 0; a < width; a += P::width) {
      const index_t some = width - a;
      const P t = math::tanh<T>(P::load_some(key + a, some) + P::load_some(query + a, some));
      const P d_sum = d * P::load_some(w3 + a, some) * (one - t * t);
      (P::load_some(d_query + a, some) + d_sum).store_some(d_query + a, some);
      if (d_key) (P::load_some(d_key + a, some) + d_sum).store_some(d_key + a, some);
      if (d_w3) fma(d, t, P::load_some(d_w3 + a, some)).store_some(d_w3 + a, some);
    }
  }
};

/// The additive score against rows that were prepared for it, since tanh(p + q) is (e^2p e^2q - 1) / (e^2p e^2q + 1): a row of keys is used
/// many times, and what it takes once saves an exponential for every number of every score. A row is prepared as its size allows:
///   near       |p| <= 1: e^2p - 1, with which nothing cancels where p and q are small
///   moderate   |p| <= 5: e^2p; products of four denominators stay in range
///   large      |p| <= 10: e^2p; products of two do
///   far        not at all; the score is made of p itself
/// Which way is taken depends on the two rows alone.
enum class ease : unsigned char { near, moderate, large, far };

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

template <class T>
ease ease_row(const T* row, index_t width, T* to) {
  using P = Packet<T>;
  P least(T(0));
  for (index_t a = 0; a < width; a += P::width) least = max(turn(negative_size(P::load_some(row + a, width - a)), P(T(-0.0))), least);
  const T size = largest(least);
  const ease kind = size <= T(1) ? ease::near : size <= T(5) ? ease::moderate : size <= T(10) ? ease::large : ease::far;
  if (kind == ease::far) return kind;
  const P scale(2 * math::log2_e<T>);
  for (index_t a = 0; a < width; a += P::width) {
    const P p = P::load_some(row + a, width - a);
    (kind == ease::near ? math::exp2_minus_one<T>(p * scale) : exp_of_twice<T>(p)).store_some(to + a, width - a);
  }
  return kind;
}

/// A query beside what was prepared of it.
template <class T>
struct eased_row {
  const T* plain;
  const T* eased;
  ease kind;
};

/// Numerator and denominator of tanh(p + q); x is what is prepared of p, and f of q.
template <class P, class T, bool KeyNear, bool QueryNear>
inline math::quotient<P> eased_tanh(P x, P f) {
  const P one(T(1)), q = QueryNear ? f + one : f;
  if constexpr (KeyNear && QueryNear) {
    const P n = fma(x, q, f);
    return {n, n + P(T(2))};
  } else {
    const P both = KeyNear ? fma(x, q, q) : x * q;
    return {both - one, both + one};
  }
}

/// Fours: one division for four quotients, else for two.
template <class T, bool KeyNear, bool QueryNear, bool Fours>
T eased_score_of(const T* key, const T* query, const T* w3, index_t width) {
  using P = Packet<T>;
  P total(T(0));
  for (index_t a = 0; a < width; a += 4 * P::width) {
    math::quotient<P> q[4];
    const index_t left = width - a;
    if (left >= 4 * P::width) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const index_t at = a + j * P::width;
        q[j] = eased_tanh<P, T, KeyNear, QueryNear>(P::load(key + at), P::load(query + at));
        q[j].numerator = q[j].numerator * P::load(w3 + at);
      }
    } else {
      for (int j = 0; j < 4; ++j) {
        const index_t at = a + j * P::width, some = std::clamp<index_t>(width - at, 0, P::width);
        q[j] = eased_tanh<P, T, KeyNear, QueryNear>(P::load_some(key + at, some), P::load_some(query + at, some));
        q[j].numerator = q[j].numerator * P::load_some(w3 + at, some);
      }
    }
    const P first = fma(q[0].numerator, q[1].denominator, q[1].numerator * q[0].denominator);
    const P second = fma(q[2].numerator, q[3].denominator, q[3].numerator * q[2].denominator);
    const P below_first = q[0].denominator * q[1].denominator, below_second = q[2].denominator * q[3].denominator;
    if constexpr (Fours)
      total = total + fma(first, below_second, second * below_first) / (below_first * below_second);
    else
      total = total + (first / below_first + second / below_second);
  }
  return sum(total);
}

/// scores[i] of `count` rows of keys, which lie `width` apart, as what is prepared of them does.
template <class T>
void eased_scores(const T* keys, const T* eased, const ease* kinds, index_t count, const eased_row<T>& query, const T* w3, index_t width,
                  T* scores) {
  for (index_t i = 0, end; i < count; i = end) {
    const ease kind = kinds[i];
    for (end = i + 1; end < count && kinds[end] == kind;) ++end;
    const auto run = [&]<bool KeyNear, bool QueryNear>() {
      if (kind == ease::large || query.kind == ease::large)
        for (index_t j = i; j < end; ++j)
          scores[j] = eased_score_of<T, KeyNear, QueryNear, false>(eased + j * width, query.eased, w3, width);
      else
        for (index_t j = i; j < end; ++j)
          scores[j] = eased_score_of<T, KeyNear, QueryNear, true>(eased + j * width, query.eased, w3, width);
    };
    const bool query_near = query.kind == ease::near;
    if (kind == ease::far || query.kind == ease::far)
      for (index_t j = i; j < end; ++j) scores[j] = additive_score::of(keys + j * width, query.plain, w3, width);
    else if (kind == ease::near)
      query_near ? run.template operator()<true, true>() : run.template operator()<true, false>();
    else
      query_near ? run.template operator()<false, true>() : run.template operator()<false, false>();
  }
}

/// key . query
struct dot_score {
  template <class T>
  static T of(const T* key, const T* query, const T*, index_t width) {
    using P = Packet<T>;
    P total[4] = {P(T(0)), P(T(0)), P(T(0)), P(T(0))};
    index_t a = 0;
    for (; a + 4 * P::width <= width; a += 4 * P::width)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) total[j] = fma(P::load(key + a + j * P::width), P::load(query + a + j * P::width), total[j]);
    for (; a < width; a += P::width) total[0] = fma(P::load_some(key + a, width - a), P::load_some(query + a, width - a), total[0]);
    return sum((total[0] + total[1]) + (total[2] + total[3]));
  }

  template <class T>
  static void backward(T d_score, const T* key, const T* query, const T*, index_t width, T* d_key, T* d_query, T*) {
    for (index_t a = 0; a < width; ++a) {
      d_query[a] += d_score * key[a];
      if (d_key) d_key[a] += d_score * query[a];
    }
  }
};

/// key + query, one number each: the score of rule::released, whose two halves are known before they meet.
struct sum_score {
  template <class T>
  static T of(const T* key, const T* query, const T*, index_t) {
    return key[0] + query[0];
  }

  template <class T>
  static void backward(T d_score, const T*, const T*, const T*, index_t, T* d_key, T* d_query, T*) {
    d_query[0] += d_score;
    if (d_key) d_key[0] += d_score;
  }
};

}  // namespace recollect::backtracking
