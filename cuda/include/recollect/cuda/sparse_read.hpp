// SPDX-License-Identifier: BSD-3-Clause
/// `backtracking.sparse_read` on a device: the contract of spec/backtracking.hpp, of which the value has the type of query; weights and
/// total are float32. A length beyond the memories there are is all of them, one below 0 none.
#pragma once

#include "recollect/cuda/top_k.hpp"
#include "recollect/spec/backtracking.hpp"

namespace recollect::cuda {

/// The lists have a place more than are read: that of the threshold.
struct SparseReadArguments {
  TopKArguments top;
  Operand<void> indices, weights, threshold, total;

  constexpr int k() const { return top.k - 1; }
};

/// What one row reads.
struct SparseChoice {
  RankedList list;
  ListWeights weights;
  int k = 0;
  bool all = true;  // there are no more than k, and weights are their softmax
  float total = 0;  // R in units of log 2, or 0 where the weights are uniform or a softmax
  index_t threshold = -1;

  template <class Thread>
  static constexpr SparseChoice of(const Thread& thread, const TopKArguments& top, index_t o, index_t r);

  /// d_a of every place, that of the threshold behind the others.
  template <class Thread>
  constexpr ListWeights score_gradients(const Thread& thread, const ListWeights& d_weights) const {
    const float mean = weights.dot(thread, d_weights);
    ListWeights d;
    if (!all && total == 0) return d;
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) {
      const float slope = all ? weights.own[j] : 1 / (total * static_cast<float>(ln_2));
      d.own[j] = weights.own[j] == 0 ? 0.0f : slope * (d_weights.own[j] - mean);
    }
    const float back = all ? 0.0f : d.sum(thread);
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j)
      if (!all && j * warp_size + thread.index() % warp_size == k) d.own[j] = -back;
    return d;
  }
};

template <class Thread>
constexpr SparseChoice SparseChoice::of(const Thread& thread, const TopKArguments& top, index_t o, index_t r) {
  SparseChoice choice;
  choice.list = list_of(thread, top, o, r);
  choice.k = top.k - 1;
  const index_t count = top.count(o, r);
  choice.all = count <= choice.k;
  const int lane = thread.index() % warp_size, read = choice.all ? static_cast<int>(count) : choice.k;
  const Rank last = choice.list.at(thread, !choice.all ? read : read > 0 ? read - 1 : 0);
  if (read > 0 && last == no_rank) {  // NaN or -inf among the scores: there is no choice, and no number to hide that behind
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) {
      choice.list.own[j] = rank_of(0, j * warp_size + lane);
      choice.weights.own[j] = j * warp_size + lane < read ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    choice.threshold = choice.all ? -1 : read;
    return choice;
  }
  math::OnlineSoftmax<float> state;
  if (choice.all) {
    choice.weights = softmax_of(thread, read, choice.list, state);
    return choice;
  }
  choice.threshold = index_of_rank(last);
#pragma unroll
  for (int j = 0; j < RankedList::groups; ++j) {
    const float above = score_of_rank(choice.list.own[j]) - score_of_rank(last);
    choice.weights.own[j] = j * warp_size + lane < read && above > 0 ? above : 0.0f;
  }
  choice.total = choice.weights.sum(thread);
#pragma unroll
  for (int j = 0; j < RankedList::groups; ++j)
    if (j * warp_size + lane < read)
      choice.weights.own[j] = choice.total > 0 ? choice.weights.own[j] / choice.total : 1 / static_cast<float>(read);
  return choice;
}

struct SparseRead : WarpRows {
  using Arguments = SparseReadArguments;
  static constexpr const char* name = "sparse_read";

  static constexpr index_t blocks(const Arguments& arguments) { return blocks_for(arguments.top.recall.outer * arguments.top.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.top.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const SparseChoice choice = SparseChoice::of(thread, arguments.top, o, r);
    const auto [indices, weights, threshold, total, out] =
        a.offsets(o, r, arguments.indices, arguments.weights, arguments.threshold, arguments.total, a.out);
    tell(thread, arguments, choice, static_cast<int>(arguments.top.count(o, r)), indices, weights);
    if (lane == 0 && arguments.threshold.given()) static_cast<index_t*>(arguments.threshold.at.data)[threshold] = choice.threshold;
    if (lane == 0 && arguments.total.given()) static_cast<float*>(arguments.total.at.data)[total] = choice.total * static_cast<float>(ln_2);
    if (!a.out.given()) return;
    weighted_rows(thread, arguments.top, a.value, a.value_width, o, choice.k, choice.list, choice.weights)
        .store(lane, a.value_width, a.out.at.data, a.out.type, out, a.out.at.inner);
  }

 private:
  /// Where all are read they are told in the order of their index, of which each is its own place.
  template <class Thread>
  static constexpr void tell(const Thread& thread, const Arguments& arguments, const SparseChoice& choice, int count, index_t indices,
                             index_t weights) {
    const auto put = [&](index_t place, index_t index, float weight) {
      static_cast<index_t*>(arguments.indices.at.data)[indices + place * arguments.indices.at.inner] = index;
      static_cast<float*>(arguments.weights.at.data)[weights + place * arguments.weights.at.inner] = weight;
    };
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) {
      const int place = j * warp_size + thread.index() % warp_size;
      if (place >= choice.k) continue;
      if (choice.all && place >= count)
        put(place, -1, 0);
      else
        put(choice.all ? index_of_rank(choice.list.own[j]) : place, index_of_rank(choice.list.own[j]), choice.weights.own[j]);
    }
  }
};

namespace detail {

inline constexpr std::string_view sparse_read_op = "backtracking.sparse_read";

struct ReadProblem {
  Shapes shapes;
  Fold fold;
  TopKArguments top;
};

inline constexpr ShapeRow read_gradient_shapes[] = {
    backtracking::read_shapes[0], backtracking::read_shapes[1], backtracking::read_shapes[2], backtracking::read_shapes[3],
    backtracking::read_shapes[4], {"d_query", "... n a"},       {"d_keys", "... N a"},        {"d_memory", "... N d"},
};

inline ReadProblem read_problem(const backtracking::read_operands& in, index_t k, const std::array<Array, 3>& d_in = {}) {
  constexpr std::string_view op = sparse_read_op;
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"query", in.query}, {"keys", in.keys}, {"memory", in.memory}}) {
    check_given(op, argument, array);
    check_stored(op, argument, array);
  }
  check_stored(op, "w3", in.w3);
  check_type(op, "lengths", in.lengths, dtype::int64);
  const ConstArray list[] = {in.query, in.keys, in.memory, in.w3, in.lengths, d_in[0], d_in[1], d_in[2]};
  ReadProblem p{Shapes(op, read_gradient_shapes, list), {}, {}};
  p.fold = Fold(p.shapes, 'n', {1, 2});
  check_width(op, "keys", in.keys, p.shapes.extent('a'));
  check_width(op, "memory", in.memory, p.shapes.extent('d'));
  RecallArguments a;
  a.outer_axes = p.fold.outer;
  a.row_axes = p.fold.rows;
  a.outer = p.fold.outer.count();
  a.rows = p.fold.rows.count();
  a.patterns = p.shapes.extent('N');
  a.width = static_cast<int>(p.shapes.extent('a'));
  a.value_width = static_cast<int>(p.shapes.extent('d'));
  a.query = operand(p.fold, p.shapes[0], in.query, true, 1);
  a.key = pattern_rows(p.fold, p.shapes[1], in.keys.data, in.keys.type);
  a.value = pattern_rows(p.fold, p.shapes[2], in.memory.data, in.memory.type);
  if (k < 0 || k > a.patterns) fail(status::value, op, ": k_top is ", k, "; expected at most N=", a.patterns);
  if (k >= RankedList::places)
    fail(status::value, op, ": k_top is ", k, ", or None beside as many memories; expected at most ", RankedList::places - 1,
         " on a device");
  p.top = top_k_arguments(op, a, "memory", k + 1, "k_top");
  if (in.lengths.given()) p.top.length = operand(p.fold, p.shapes[4], in.lengths, false, -1);
  if (in.w3.given()) {
    p.top.vector = {{}, in.w3.type};
    p.top.vector.at.data = in.w3.data;
    p.top.vector.at.inner = p.shapes[3].inner[0];
  }
  return p;
}

template <class Device>
void scan(std::string_view op, Device& device, ReadProblem& p) {
  if (p.top.vector.given())
    scan<AdditiveTopKScan>(op, device, p.top);
  else
    scan_products(op, device, p.top);
}

}  // namespace detail

/// k_top is how many places `indices` has.
template <class Device>
void sparse_read(Device& device, const backtracking::read_operands& in, const backtracking::read_results& out) {
  using namespace detail;
  constexpr std::string_view op = sparse_read_op;
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"indices", out.indices}, {"weights", out.weights}})
    check_given(op, argument, array);
  const index_t k = out.indices.rank > 0 ? out.indices.extents[out.indices.rank - 1] : 0;
  ReadProblem p = read_problem(in, k);
  const index_t n = p.shapes.extent('n');
  check_output(op, "value", out.value, in.query.type, p.shapes, {n, p.shapes.extent('d')});
  check_output(op, "indices", out.indices, dtype::int64, p.shapes, {n, k});
  check_output(op, "weights", out.weights, dtype::float32, p.shapes, {n, k});
  check_output(op, "threshold", out.threshold, dtype::int64, p.shapes, {n});
  check_output(op, "total", out.total, dtype::float32, p.shapes, {n});
  const auto place = [&](const Array& array) { return output(p.fold, array, p.shapes.batch_rank()); };
  p.top.recall.out = place(out.value);
  scan(op, device, p);
  launch<SparseRead>(op, device, {p.top, place(out.indices), place(out.weights), place(out.threshold), place(out.total)});
}

/// Gradients of query, keys and memory for a score that is a scalar product. Where keys are memory, the same
/// numbers, and d_keys is left out, d_memory is of both. The selection is made again. What has no weight gets zeros.
template <class Device>
void sparse_read_backward(Device& device, const backtracking::read_operands& in, index_t k_top, const ConstArray& d_value,
                          const Array& d_query, const Array& d_keys, const Array& d_memory) {
  using namespace detail;
  constexpr std::string_view op = sparse_read_op;
  check_given(op, "d_value", d_value);
  if (in.w3.given()) fail(status::value, op, ": w3 is given; expected none, as a device has no gradient of the additive score yet");
  check_gradient(op, "d_query", d_query, in.query, in.query.type);
  check_gradient(op, "d_keys", d_keys, in.keys, in.keys.type);
  check_gradient(op, "d_memory", d_memory, in.memory, in.memory.type);
  ReadProblem p = read_problem(in, k_top, {d_query, d_keys, d_memory});
  check_output(op, "d_value", as_output(d_value), in.query.type, p.shapes, {p.shapes.extent('n'), p.shapes.extent('d')});
  TopKBackwardArguments a;
  a.d_out = {p.fold.template place_output<const void>(as_output(d_value), p.shapes.batch_rank()), d_value.type};
  RecallPullback<Device> pull(op, device, p.fold, p.top.recall);
  a.d_query = pull.rows({d_query, p.shapes[5]}, p.top.recall.width);
  const MemoryGradient of_keys = pull.memory({d_keys, p.shapes[6]}, p.top.recall.width, false);
  const MemoryGradient of_memory = pull.memory({d_memory, p.shapes[7]}, p.top.recall.value_width, false);
  a.joined = in.keys.data == in.memory.data && !d_keys.given() && d_memory.given();
  a.d_key = a.joined ? of_memory : of_keys;
  if (!a.joined) a.d_value = of_memory;
  scan(op, device, p);
  a.top = p.top;
  backward<SparseChoice>(op, device, a);
  pull.finish();
}

}  // namespace recollect::cuda
