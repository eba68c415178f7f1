// SPDX-License-Identifier: BSD-3-Clause
/// `score::additive` and its gradient on the CPU; the contract is in spec/score.hpp.
///
/// Packets run along the keys, which are turned so that those of one hidden unit lie side by side: a score is summed over the units in
/// their order, wherever its key stands, and in the gradient every unit is a task of its own.
#pragma once

#include "recollect/math/tanh.hpp"
#include "recollect/ops/score.hpp"

namespace recollect::score {

namespace detail {

/// The operands of one leading entry, and the strides of their letters.
template <class T>
struct AdditivePlaces {
  const T *query, *key, *vector, *bias;
  const bool* mask;
  std::array<index_t, 2> query_strides, key_strides, mask_strides, bias_strides;
  index_t vector_stride;
};

template <class T>
class Additive {
 public:
  Additive(const Shapes& shapes, const additive_operands& in, const causality& rule)
      : shapes_(shapes), in_(in), rule_(rule), queries_(shapes.extent('n')), keys_(shapes.extent('m')), units_(shapes.extent('A')) {
    for (int axis = 0; axis < shapes.batch_rank(); ++axis) batch_.add(shapes.batch_extent(axis));
  }

  void scores(const Array& out) const {
    const index_t tiles = (keys_ + tile - 1) / tile, chunks = (queries_ + chunk - 1) / chunk, each = tiles * chunks;
    parallel_for(batch_.count() * each, [&](index_t task) {
      const index_t entry = task / each, first = task % each / chunks * tile, row = task % chunks * chunk;
      score_tile(places(entry), output(out, entry), out, first, std::min(tile, keys_ - first), row, std::min(row + chunk, queries_));
    });
  }

  /// d_k_j = v o sum_i ds_ij (1 - t^2),  d_q_i the same over j,  d_v = sum_ij ds_ij t,   t = tanh(k_j + q_i)
  void gradients(const Array& d_scores, const additive_gradients& to) const {
    parallel_for(batch_.count() * units_, [&](index_t task) {
      const index_t entry = task / units_, unit = task % units_;
      differentiate(places(entry), output(d_scores, entry), d_scores, entry, unit, to);
    });
  }

 private:
  using P = Packet<T>;
  static constexpr index_t tile = 16 * P::width, chunk = 64;

  template <class U>
  static U* at(const ConstArray& array, index_t offset) {
    return array.given() ? static_cast<U*>(const_cast<void*>(array.data)) + offset : nullptr;
  }

  AdditivePlaces<T> places(index_t entry) const {
    const auto offset = [&](int operand) {
      Strides strides{};
      for (int axis = 0; axis < shapes_.batch_rank(); ++axis) strides[axis] = shapes_[operand].batch[axis];
      return batch_.offset(entry, strides);
    };
    return {at<const T>(in_.query, offset(0)),
            at<const T>(in_.key, offset(1)),
            at<const T>(in_.vector, offset(2)),
            at<const T>(in_.bias, offset(4)),
            at<const bool>(in_.mask, offset(3)),
            shapes_[0].inner,
            shapes_[1].inner,
            shapes_[3].inner,
            shapes_[4].inner,
            shapes_[2].inner[0]};
  }

  /// Where a leading entry begins in an array that has all leading axes.
  T* output(const Array& array, index_t entry) const {
    Strides strides{};
    for (int axis = 0; axis < shapes_.batch_rank(); ++axis) strides[axis] = array.strides[axis];
    return static_cast<T*>(array.data) + batch_.offset(entry, strides);
  }

  static index_t stride(const Array& array, int from_last) { return array.strides[array.rank - 1 - from_last]; }

  void score_tile(const AdditivePlaces<T>& at, T* out, const Array& shape, index_t first, index_t count, index_t row, index_t end) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *keys = scratch.take<T>(units_ * tile), *query = scratch.take<T>(units_), *vector = scratch.take<T>(units_),
      *sums = scratch.take<T>(tile);
    for (index_t u = 0; u < units_; ++u) {
      vector[u] = at.vector[u * at.vector_stride];
      for (index_t j = 0; j < tile; ++j)
        keys[u * tile + j] = j < count ? at.key[(first + j) * at.key_strides[0] + u * at.key_strides[1]] : T(0);
    }
    for (index_t i = row; i < end; ++i) {
      const index_t visible = rule_.on ? std::clamp<index_t>(i + 1 + rule_.shift - first, 0, count) : count;
      for (index_t u = 0; u < units_; ++u) query[u] = at.query[i * at.query_strides[0] + u * at.query_strides[1]];
      constexpr index_t together = 4 * P::width;
      for (index_t j = 0; j < visible; j += together) sum_units(keys + j, query, vector, sums + j);
      write(at, sums, out + i * stride(shape, 1) + first * stride(shape, 0), stride(shape, 0), i, first, visible, count);
    }
  }

  /// Four packets of keys against one query. Two units share a division: n1/d1 + n2/d2 = (n1 d2 + n2 d1) / (d1 d2), with d from 1 to 2.
  void sum_units(const T* keys, const T* query, const T* vector, T* sums) const {
    P total[4] = {P(T(0)), P(T(0)), P(T(0)), P(T(0))};
    index_t u = 0;
    for (; u + 1 < units_; u += 2) {
      const P q(query[u]), q2(query[u + 1]), v(vector[u]), v2(vector[u + 1]);
      for (int p = 0; p < 4; ++p) {
        const auto a = math::tanh_quotient<T>(P::load(keys + u * tile + p * P::width) + q);
        const auto b = math::tanh_quotient<T>(P::load(keys + (u + 1) * tile + p * P::width) + q2);
        total[p] = total[p] + fma(v * a.numerator, b.denominator, v2 * b.numerator * a.denominator) / (a.denominator * b.denominator);
      }
    }
    for (; u < units_; ++u)
      for (int p = 0; p < 4; ++p)
        total[p] = fma(P(vector[u]), math::tanh<T>(P::load(keys + u * tile + p * P::width) + P(query[u])), total[p]);
    for (int p = 0; p < 4; ++p) total[p].store(sums + p * P::width);
  }

  static void write(const AdditivePlaces<T>& at, const T* sums, T* to, index_t step, index_t i, index_t first, index_t visible,
                    index_t count) {
    constexpr T never = -std::numeric_limits<T>::infinity();
    const bool* mask = at.mask ? at.mask + i * at.mask_strides[0] + first * at.mask_strides[1] : nullptr;
    const T* bias = at.bias ? at.bias + i * at.bias_strides[0] + first * at.bias_strides[1] : nullptr;
    for (index_t j = 0; j < count; ++j) {
      const T added = bias ? bias[j * at.bias_strides[1]] : T(0);
      const bool seen = j < visible && (!mask || mask[j * at.mask_strides[1]]) && added != never;
      to[j * step] = seen ? sums[j] + added : never;
    }
  }

  void differentiate(const AdditivePlaces<T>& at, const T* d_scores, const Array& shape, index_t entry, index_t unit,
                     const additive_gradients& to) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const index_t room = padded<T>(keys_), step = stride(shape, 0);
    T *keys = scratch.take<T>(room), *d_keys = scratch.take<T>(room), *cotangents = scratch.take<T>(room);
    for (index_t j = 0; j < room; ++j) keys[j] = j < keys_ ? at.key[j * at.key_strides[0] + unit * at.key_strides[1]] : T(0);
    std::fill_n(d_keys, room, T(0));
    std::fill_n(cotangents, room, T(0));
    const T weight = at.vector[unit * at.vector_stride];
    T* d_query = output(to.query, entry) + unit * stride(to.query, 0);
    double d_weight = 0;
    for (index_t i = 0; i < queries_; ++i) {
      const T* row = d_scores + i * stride(shape, 1);
      for (index_t j = 0; j < keys_; ++j) cotangents[j] = row[j * step];
      const P q(at.query[i * at.query_strides[0] + unit * at.query_strides[1]]);
      P inner(T(0)), outer(T(0));
      for (index_t j = 0; j < room; j += P::width) {
        const P g = P::load(cotangents + j), t = math::tanh<T>(P::load(keys + j) + q);
        const P slope = unless_zero(g, g * fma(P(T(0)) - t, t, P(T(1))));
        outer = outer + unless_zero(g, g * t);
        inner = inner + slope;
        (P::load(d_keys + j) + slope).store(d_keys + j);
      }
      d_query[i * stride(to.query, 1)] = weight * sum(inner);
      d_weight += static_cast<double>(sum(outer));
    }
    T* d_key = output(to.key, entry) + unit * stride(to.key, 0);
    for (index_t j = 0; j < keys_; ++j) d_key[j * stride(to.key, 1)] = weight * d_keys[j];
    output(to.vector, entry)[unit * stride(to.vector, 0)] = static_cast<T>(d_weight);
  }

  const Shapes& shapes_;
  const additive_operands& in_;
  const causality rule_;
  const index_t queries_, keys_, units_;
  Axes batch_;
};

inline Shapes check_additive(std::string_view op, const additive_operands& in) {
  check_given(op, "query", in.query);
  check_given(op, "key", in.key);
  check_given(op, "vector", in.vector);
  if (in.query.type != dtype::float32 && in.query.type != dtype::float64)
    fail(status::type, op, ": query has dtype ", name(in.query.type), "; expected float32 or float64");
  if (in.key.type != in.query.type || in.vector.type != in.query.type)
    fail(status::type, op, ": key and vector have dtype ", name(in.key.type), " and ", name(in.vector.type), "; expected ",
         name(in.query.type), " as query");
  if (in.mask.given() && in.mask.type != dtype::boolean)
    fail(status::type, op, ": mask has dtype ", name(in.mask.type), "; expected bool, true where attention is allowed");
  check_bias(op, in.bias, in.query.type);
  const ConstArray list[] = {in.query, in.key, in.vector, in.mask, in.bias};
  return Shapes(op, additive_shapes, list);
}

}  // namespace detail

/// out (..., n, m). Cost O(n m A), a tanh each.
inline void additive(std::string_view op, const additive_operands& in, const causality& rule, const Array& out) {
  const Shapes shapes = detail::check_additive(op, in);
  detail::check_output(op, "out", out, in.query.type, shapes, {shapes.extent('n'), shapes.extent('m')});
  visit_arithmetic(in.query.type, [&]<class T>() { detail::Additive<T>(shapes, in, rule).scores(out); });
}

/// Gradients from d_scores (..., n, m), zero where a query may not attend: there keys may hold anything. mask and bias are not looked at.
inline void additive_backward(std::string_view op, const additive_operands& in, const ConstArray& d_scores,
                              const additive_gradients& d_in) {
  const Shapes shapes = detail::check_additive(op, in);
  const index_t n = shapes.extent('n'), m = shapes.extent('m'), units = shapes.extent('A');
  const Array cotangent = detail::as_output(d_scores);
  detail::check_given(op, "d_scores", d_scores);
  for (const Array* wanted : {&d_in.query, &d_in.key, &d_in.vector}) detail::check_given(op, "a gradient", *wanted);
  detail::check_output(op, "d_scores", cotangent, in.query.type, shapes, {n, m});
  detail::check_output(op, "d_query", d_in.query, in.query.type, shapes, {n, units});
  detail::check_output(op, "d_key", d_in.key, in.query.type, shapes, {m, units});
  detail::check_output(op, "d_vector", d_in.vector, in.query.type, shapes, {units});
  visit_arithmetic(in.query.type, [&]<class T>() { detail::Additive<T>(shapes, in, {}).gradients(cotangent, d_in); });
}

}  // namespace recollect::score
