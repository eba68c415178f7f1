// SPDX-License-Identifier: BSD-3-Clause
/// The normalised sum rule with features that are known by their logarithms, which may be far outside the numbers there are. Row k of S
/// and of z is held divided by e^{c_k}, c_k the running maximum of what was written there,
///
///     c_t = max(c_{t-1} + log D_t, log phi(key_t)),     phi(key_t) -> e^(log phi(key_t) - c_t),     D_t -> D_t e^(c_{t-1} - c_t),
///
/// so that no key and no decay is above 1 and z is 1 or more where there was a key. A query is multiplied by e^{c_t} and divided by its
/// largest feature after that, which output and divisor have in common: the divisor is never 0. All of this is exact whatever c is; it
/// is a constant for gradients.
#pragma once

#include "recollect/ops/fast_weight_setting.hpp"

namespace recollect::detail {

template <class T>
class LogarithmicRows : TokenSetting<T> {
  using Base = TokenSetting<T>;
  using Base::form, Base::from, Base::map, Base::p, Base::wide;

 public:
  explicit LogarithmicRows(const TokenSetting<T>& setting) : Base(setting) {}

  /// phi(key), D and phi(query) of token `at`, and c after it.
  void load(index_t at, T* c, T* key, T* decay, T* query) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    double *log_phi = scratch.take<double>(wide), *faded = scratch.take<double>(wide);
    T* x = scratch.take<T>(padded<T>(map.d()));
    for (index_t k = 0; k < map.width(); ++k) faded[k] = static_cast<double>(c[k]);
    if (form.gated) add_decay(at, faded);
    if (form.write) {
      load_row(from.key, at, map.d(), x);
      map.logarithms(x, log_phi);
    }
    for (index_t k = 0; k < map.width(); ++k) c[k] = rounded(form.write && log_phi[k] > faded[k] ? log_phi[k] : faded[k]);
    if (form.write) relative_to(c, log_phi, key);
    if (form.gated) {
      relative_to(c, faded, decay);
      std::fill(decay + map.width(), decay + wide, T(1));
    }
    if (!form.query) return;
    load_row(from.query, at, map.d(), x);
    map.logarithms(x, log_phi);
    for (index_t k = 0; k < map.width(); ++k) log_phi[k] += static_cast<double>(c[k]);
    const double top = largest_of(log_phi, map.width());
    if (top == -std::numeric_limits<double>::infinity())
      std::fill_n(query, wide, T(0));  // of nothing that is held
    else
      exponentials(log_phi, map.width(), top, query);
  }

 private:
  /// A number of the type, so that a state that is stored and loaded again is the same; -inf is nothing yet.
  static T rounded(double c) {
    constexpr double lowest = static_cast<double>(std::numeric_limits<T>::lowest());
    return c == -std::numeric_limits<double>::infinity() ? static_cast<T>(c) : static_cast<T>(std::max(c, lowest));
  }

  /// e^(log_row - c)
  void relative_to(const T* c, double* log_row, T* row) const {
    for (index_t k = 0; k < map.width(); ++k)
      if (log_row[k] != -std::numeric_limits<double>::infinity()) log_row[k] -= static_cast<double>(c[k]);
    exponentials(log_row, map.width(), 0, row);
  }

  void add_decay(index_t at, double* to) const {
    const auto logarithm = [&](T decay) { return p.log_decay ? static_cast<double>(decay) : std::log(static_cast<double>(decay)); };
    if (from.channel_decay)
      for (index_t k = 0; k < map.width(); ++k) to[k] += logarithm(from.channel_decay.at(at, k));
    if (!from.decay) return;
    const double all = logarithm(from.decay.at(at));
    for (index_t k = 0; k < map.width(); ++k) to[k] += all;
  }
};

}  // namespace recollect::detail
