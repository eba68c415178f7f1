// SPDX-License-Identifier: BSD-3-Clause
/// `backtracking::read` on the CPU: the sparse read over any memory; the contract is in spec/backtracking.hpp.
///
/// Scores are made in pieces, a block of queries against a tile of memories that stays in cache, and of each piece only the k + 1 best are
/// kept: memory beyond operands and results is O(n k) for each tile. Pieces are merged in the order of the memories.
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/core/scratch.hpp"
#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/sparse_choice.hpp"
#include "recollect/ops/sparse_scores.hpp"

namespace recollect::backtracking {

namespace detail {

using recollect::detail::as_output;
using recollect::detail::check_given;
using recollect::detail::check_output;

inline constexpr std::string_view read_op = "backtracking.sparse_read";

/// Where the rows of one operand lie: its leading axes broadcast, its last two contiguous.
template <class T>
struct Rows {
  T* data = nullptr;
  std::array<index_t, max_rank + 1> batch{};
  index_t row = 0;

  T* at(const Axes& axes, index_t entry) const { return data + axes.offset(entry, batch); }
};

template <class T, class Score>
class SparseRead {
 public:
  SparseRead(const Shapes& shapes, const read_operands& in, const read_results& out)
      : n_(shapes.extent('n')), N_(shapes.extent('N')), a_(shapes.extent('a')), d_(shapes.extent('d')) {
    for (int axis = 0; axis < shapes.batch_rank(); ++axis) axes_.add(shapes.batch_extent(axis));
    k_ = out.indices.extents[out.indices.rank - 1];
    place(query_, shapes[0], in.query);
    place(keys_, shapes[1], in.keys);
    place(memory_, shapes[2], in.memory);
    w3_ = static_cast<const T*>(in.w3.data);
    if (in.lengths.given()) place(lengths_, shapes[4], in.lengths);
    value_ = static_cast<T*>(out.value.data);
    indices_ = static_cast<index_t*>(out.indices.data);
    weights_ = static_cast<T*>(out.weights.data);
    threshold_ = static_cast<index_t*>(out.threshold.data);
    total_ = static_cast<T*>(out.total.data);
  }

  void forward() const {
    const index_t blocks = (n_ + block - 1) / block, tiles = std::max<index_t>((N_ + tile - 1) / tile, 1);
    const index_t queries = axes_.count() * n_, places = queries * tiles * (k_ + 1);
    const Buffer<T> scores(places);
    const Buffer<index_t> found(places);
    const auto best = [&](index_t query, index_t t) {
      const index_t at = (query * tiles + t) * (k_ + 1);
      return math::TopK<T>{scores.data() + at, found.data() + at, k_ + 1};
    };
    parallel_for(axes_.count() * blocks * tiles, [&](index_t task) {
      const index_t entry = task / (blocks * tiles), first = task / tiles % blocks * block;
      score_tile(entry, first, std::min(n_, first + block), task % tiles, best);
    });
    parallel_for((queries + block - 1) / block, [&](index_t task) {
      for (index_t query = task * block; query < std::min(queries, (task + 1) * block); ++query) {
        const index_t count = length(query / n_);
        Choice<T> choice = choice_of(query);
        for (index_t t = 1; count > k_ && t < tiles; ++t) best(query, 0).merge(best(query, t));
        count > k_ ? choose_best(rule::paper, best(query, 0), choice) : choose_all(rule::paper, 0, count, choice);
        threshold_[query] = choice.threshold;
        total_[query] = choice.total;
        read_value(choice, memory_.at(axes_, query / n_), memory_.row, d_, value_ + query * d_);
      }
    });
  }

  void backward(const T* d_value, const read_gradients& to) const {
    const index_t queries = axes_.count() * n_, tasks = (queries + block - 1) / block;
    T* const d_w3 = static_cast<T*>(to.d_w3.data);
    const Buffer<T> parts(d_w3 ? tasks * a_ : 0);
    std::fill_n(parts.data(), d_w3 ? tasks * a_ : 0, T(0));
    parallel_for(tasks, [&](index_t task) {
      for (index_t query = task * block; query < std::min(queries, (task + 1) * block); ++query)
        backward_row(query, d_value + query * d_, to, d_w3 ? parts.data() + task * a_ : nullptr);
    });
    if (!d_w3) return;
    std::fill_n(d_w3, a_, T(0));
    for (index_t task = 0; task < tasks; ++task)
      for (index_t a = 0; a < a_; ++a) d_w3[a] += parts.data()[task * a_ + a];
  }

 private:
  static constexpr index_t block = 16, tile = 1024;

  template <class U>
  void place(Rows<const U>& rows, const BoundOperand& operand, const ConstArray& array) {
    rows.data = static_cast<const U*>(array.data);
    for (int axis = 0; axis < axes_.rank; ++axis) rows.batch[axis] = operand.batch[axis];
    rows.row = operand.inner[0];
  }

  /// The memories of a batch entry.
  index_t length(index_t entry) const { return lengths_.data ? std::clamp<index_t>(*lengths_.at(axes_, entry), 0, N_) : N_; }

  Choice<T> choice_of(index_t query) const { return {k_, indices_ + query * k_, weights_ + query * k_, threshold_[query], total_[query]}; }

  template <class Best>
  void score_tile(index_t entry, index_t first, index_t last, index_t t, const Best& best) const {
    const index_t count = length(entry), from = t * tile, to = std::min(count, from + tile);
    for (index_t i = first; i < last; ++i) {
      const index_t query = entry * n_ + i;
      const T* q = query_.at(axes_, entry) + i * query_.row;
      const T* key = keys_.at(axes_, entry);
      const math::TopK<T> here = best(query, t);
      here.reset();
      for (index_t j = from; j < to; ++j) {
        const T score = Score::of(key + j * keys_.row, q, w3_, a_);
        if (count <= k_)
          weights_[query * k_ + j] = score;
        else
          here.offer(score, j);
      }
    }
  }

  void backward_row(index_t query, const T* d_value, const read_gradients& to, T* d_w3) const {
    using P = Packet<T>;
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *const g = scratch.take<T>(k_), *const d_score = scratch.take<T>(k_ + 1);
    const index_t entry = query / n_;
    const Choice<T> choice = choice_of(query);
    const T* const memory = memory_.at(axes_, entry);
    T* const d_memory = static_cast<T*>(to.d_memory.data) + query * k_ * d_;
    for (index_t i = 0; i < k_; ++i) {
      P total(T(0));
      const bool read = choice.indices[i] >= 0;
      for (index_t d = 0; d < d_; d += P::width) {
        const P cotangent = P::load_some(d_value + d, d_ - d);
        if (read) total = fma(cotangent, P::load_some(memory + choice.indices[i] * memory_.row + d, d_ - d), total);
        (cotangent * P(choice.weights[i])).store_some(d_memory + i * d_ + d, d_ - d);
      }
      g[i] = sum(total);
    }
    score_gradients(rule::paper, length(entry), choice, g, d_score);
    T* const d_keys = static_cast<T*>(to.d_keys.data) + query * (k_ + 1) * a_;
    T* const d_query = static_cast<T*>(to.d_query.data) + query * a_;
    std::fill_n(d_keys, (k_ + 1) * a_, T(0));
    std::fill_n(d_query, a_, T(0));
    for (index_t i = 0; i <= k_; ++i) {
      if (d_score[i] == 0) continue;
      const index_t j = i < k_ ? choice.indices[i] : choice.threshold;
      Score::backward(d_score[i], keys_.at(axes_, entry) + j * keys_.row, query_.at(axes_, entry) + (query % n_) * query_.row, w3_, a_,
                      d_keys + i * a_, d_query, d_w3);
    }
  }

  Axes axes_;
  index_t n_, N_, a_, d_, k_ = 0;
  Rows<const T> query_, keys_, memory_;
  Rows<const index_t> lengths_;
  const T* w3_;
  T *value_, *weights_, *total_;
  index_t *indices_, *threshold_;
};

inline Shapes check_read(const read_operands& in, const read_results& out) {
  constexpr std::string_view op = read_op;
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"query", in.query}, {"keys", in.keys}, {"memory", in.memory}})
    check_given(op, argument, array);
  const dtype type = in.query.type;
  if (type != dtype::float32 && type != dtype::float64)
    fail(status::type, op, ": query has dtype ", name(type), "; expected float32 or float64");
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"keys", in.keys}, {"memory", in.memory}, {"w3", in.w3}})
    if (array.given() && array.type != type)
      fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected ", name(type), " as query");
  if (in.lengths.given() && in.lengths.type != dtype::int64)
    fail(status::type, op, ": lengths has dtype ", name(in.lengths.type), "; expected int64");
  const ConstArray list[] = {in.query, in.keys, in.memory, in.w3, in.lengths};
  const Shapes shapes(op, read_shapes, list);
  for (const auto& [argument, array] :
       {std::pair<const char*, ConstArray>{"query", in.query}, {"keys", in.keys}, {"memory", in.memory}, {"w3", in.w3}})
    if (array.given() && array.size() > 0 && array.extents[array.rank - 1] > 1 && array.strides[array.rank - 1] != 1)
      fail(status::value, op, ": ", argument, " has a stride along its last axis; expected it to be contiguous");
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"indices", out.indices}, {"weights", out.weights}})
    check_given(op, argument, array);
  const index_t n = shapes.extent('n'), k = out.indices.rank > 0 ? out.indices.extents[out.indices.rank - 1] : 0;
  if (k < 0 || k > shapes.extent('N')) fail(status::value, op, ": k_top is ", k, "; expected at most N=", shapes.extent('N'));
  check_output(op, "value", out.value, type, shapes, {n, shapes.extent('d')});
  check_output(op, "indices", out.indices, dtype::int64, shapes, {n, k});
  check_output(op, "weights", out.weights, type, shapes, {n, k});
  check_output(op, "threshold", out.threshold, dtype::int64, shapes, {n});
  check_output(op, "total", out.total, type, shapes, {n});
  return shapes;
}

/// run<T, Score>() for the operands' type and score.
template <class Run>
void visit_score(const read_operands& in, Run&& run) {
  visit_arithmetic(in.query.type, [&]<class T>() {
    if (in.w3.given())
      run.template operator()<T, additive_score>();
    else
      run.template operator()<T, dot_score>();
  });
}

}  // namespace detail

/// k places are read, by the extent of `indices`: min(k_top, N). All results are given, contiguous. Cost O(n N a) for the scores.
inline void read(const read_operands& in, const read_results& out) {
  const Shapes shapes = detail::check_read(in, out);
  detail::visit_score(in, [&]<class T, class Score>() { detail::SparseRead<T, Score>(shapes, in, out).forward(); });
}

/// Gradients of what was read, with the results of `read` for the same operands; all contiguous. Cost O(n k (a + d)).
inline void read_backward(const read_operands& in, const read_results& kept, const ConstArray& d_value, const read_gradients& to) {
  using namespace detail;
  const Shapes shapes = check_read(in, kept);
  check_given(read_op, "d_value", d_value);
  const dtype type = in.query.type;
  const index_t n = shapes.extent('n'), a = shapes.extent('a'), d = shapes.extent('d');
  const index_t k = kept.indices.extents[kept.indices.rank - 1];
  check_output(read_op, "d_value", as_output(d_value), type, shapes, {n, d});
  check_output(read_op, "d_query", to.d_query, type, shapes, {n, a});
  check_output(read_op, "d_keys", to.d_keys, type, shapes, {n, k + 1, a});
  check_output(read_op, "d_memory", to.d_memory, type, shapes, {n, k, d});
  visit_score(in,
              [&]<class T, class Score>() { SparseRead<T, Score>(shapes, in, kept).backward(static_cast<const T*>(d_value.data), to); });
}

}  // namespace recollect::backtracking
