// SPDX-License-Identifier: BSD-3-Clause
/// How a query is compared with what is stored with a memory, one number out of two rows, and the gradient of that. Equations:
/// spec/backtracking.hpp. `w3` is null where a score has no parameter.
#pragma once

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
