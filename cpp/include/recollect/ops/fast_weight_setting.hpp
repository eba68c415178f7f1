// SPDX-License-Identifier: BSD-3-Clause
/// What the operands of one sequence are, what its tokens' rows are made of, and the arithmetic of rows that loading them and pulling
/// their gradients back share.
#pragma once

#include "recollect/ops/fast_weight_rows.hpp"
#include "recollect/ops/feature_rows.hpp"
#include "recollect/spec/fast_weight.hpp"

namespace recollect::detail {

/// The operands (T const) or the gradients of one sequence.
template <class T>
struct Sequence {
  Rows<T> query, key, value, beta, a, b, decay, channel_decay, state;
};

/// What the rows of a chunk are made of, and where they lie if they do not lie in the operands.
template <class T>
struct TokenRows {
  index_t count = 0;
  T *key = nullptr, *query = nullptr;  // phi(key), phi(query)
  std::array<T*, 2> writer{}, reader{};
  T *value = nullptr, *out = nullptr, *written = nullptr;
  T* removal = nullptr;                           // b, where it is a key of its own
  T* normaliser = nullptr;                        // z_t, and in the row before the first that before the chunk
  T *of_output = nullptr, *of_removal = nullptr;  // what is divided by, inverted
  T* late_divisor = nullptr;  // of the finished output instead of the query, where its inverse is more than the type holds
  T* strength = nullptr;
};

/// The map gives logarithms, and the factors that they leave open fall out.
template <class T>
bool is_logarithmic(const fast_weight::parameters& p, const RowMap<T>& map) {
  return map.logarithmic() && p.rule == fast_weight::rule::sum && p.normalise == fast_weight::normalisation::outputs;
}

/// Columns of a state behind those of the values: the normaliser z and the logarithms c.
template <class T>
index_t columns_behind(const fast_weight::parameters& p, const RowMap<T>& map) {
  return (p.normalise != fast_weight::normalisation::none) + is_logarithmic(p, map);
}

/// What of a state does not lie in strips: z and, where rows are logarithmic, c.
template <class T>
struct Normaliser {
  T *z = nullptr, *c = nullptr;
};

/// A rule with the operands of one sequence.
template <class T>
struct TokenSetting {
  using P = Packet<T>;

  fast_weight::parameters p;
  RowMap<T> map;
  Sequence<const T> from;
  T scale;
  index_t values, wide;  // wide: of a row of phi, padded
  ChunkForm form{};

  TokenSetting(const fast_weight::parameters& given, const RowMap<T>& phi, const Sequence<const T>& operands, double factor,
               index_t columns)
      : p(given), map(phi), from(operands), scale(static_cast<T>(factor)), values(columns), wide(padded<T>(phi.width())) {
    form.query = static_cast<bool>(from.query);
    form.write = static_cast<bool>(from.key);
    form.remove = form.write && p.rule != fast_weight::rule::sum;
    form.erase = form.write && static_cast<bool>(from.a);
    form.gated = from.decay || from.channel_decay || (form.write && logarithmic());
  }

  bool normalised() const { return p.normalise != fast_weight::normalisation::none; }
  /// Whether rows come of their logarithms: see fast_weight_logarithms.hpp.
  bool logarithmic() const { return is_logarithmic(p, map); }
  bool delta() const { return form.remove && p.rule == fast_weight::rule::delta; }
  bool divides_removals() const { return delta() && p.normalise == fast_weight::normalisation::outputs_and_removals; }
  bool scaled() const { return normalised() || scale != T(1); }

  void scale_row(const T* row, T factor, T* to) const {
    for (index_t k = 0; k < wide; k += P::width) (P(factor) * P::load(row + k)).store(to + k);
  }

  T product(const T* x, const T* y) const {
    P total(T(0));
    for (index_t k = 0; k < wide; k += P::width) total = fma(P::load(x + k), P::load(y + k), total);
    return sum(total);
  }
};

}  // namespace recollect::detail
