// SPDX-License-Identifier: BSD-3-Clause
/// `score::dot` on the CPU; the contract is in spec/score.hpp.
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/ops/recall_block.hpp"
#include "recollect/ops/recall_checks.hpp"
#include "recollect/spec/score.hpp"

namespace recollect::score {

namespace detail {

using namespace recollect::detail;

/// Scores of one block of rows, tile by tile, written where they belong.
template <class T>
class DotScores {
 public:
  DotScores(const RecallProblem<T>& problem, const Placed<T>& out) : problem_(problem), out_(out), pass_(problem, false, false) {}

  void run() const {
    const index_t at_once = rows_of_a_task(problem_, 1);
    if (problem_.rows == 0 || problem_.outer == 0) return;
    const index_t blocks = (problem_.rows + at_once - 1) / at_once;
    parallel_for(blocks * problem_.outer, [&](index_t task) {
      const index_t first = task % blocks * at_once;
      block(task / blocks, first, std::min(at_once, problem_.rows - first));
    });
  }

 private:
  struct Write {
    const DotScores& to;
    index_t outer, first_row, first;

    void row(index_t r, index_t visible, const T* scores) const {
      T* row = to.problem_.at(to.out_, outer, first_row + r) + first * to.out_.inner;
      for (index_t i = 0; i < visible; ++i) row[i * to.out_.inner] = scores[i];
    }
    void rows(index_t, index_t, index_t, const T*, const Tile<T>&) const {}
  };

  void block(index_t outer, index_t first, index_t rows) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const RecallBlock<T> block(problem_, outer, first, rows, [&]<class U>(index_t count) { return scratch.take<U>(count); });
    index_t* admissible = scratch.take<index_t>(rows);
    std::fill_n(admissible, rows, index_t{0});
    const typename ScorePass<T>::Workspace work(pass_, scratch);
    for (index_t r = 0; r < rows; ++r) {
      T* row = problem_.at(out_, outer, first + r);
      for (index_t i = 0; i < problem_.patterns; ++i) row[i * out_.inner] = -std::numeric_limits<T>::infinity();
    }
    const Cues<T> cues = block.prepare(1.0);
    for (index_t i = 0; i < problem_.patterns; i += pass_.tile())
      pass_.absorb(outer, cues, i, std::min(pass_.tile(), problem_.patterns - i), {admissible, nullptr}, work,
                   Write{*this, outer, first, i});
  }

  const RecallProblem<T>& problem_;
  const Placed<T>& out_;
  const ScorePass<T> pass_;
};

inline void check_bias(std::string_view op, const ConstArray& bias, dtype type) {
  if (bias.given() && bias.type != type)
    fail(status::type, op, ": bias has dtype ", name(bias.type), "; expected ", name(type), " as query");
}

}  // namespace detail

/// out (..., n, m). Cost O(n m d).
inline void dot(std::string_view op, const dot_operands& in, const causality& rule, const Array& out) {
  using namespace detail;
  check_recall_types(op, {"query", "key", "", "scale", "mask"}, in.query, in.key, {}, in.scale, in.mask);
  check_bias(op, in.bias, in.query.type);
  check_numbers(op, "scale", in.scale, [](double s) { return std::isfinite(s); }, "a finite number");
  const ConstArray list[] = {in.query, in.key, in.scale, in.mask, in.bias};
  const Shapes shapes(op, dot_shapes, list);
  check_output(op, "out", out, in.query.type, shapes, {shapes.extent('n'), shapes.extent('m')});
  visit_arithmetic(in.query.type, [&]<class T>() {
    RecallProblem<T> p;
    p.fold = Fold(shapes, 'n', {1});
    p.rows = p.fold.rows.count();
    p.outer = p.fold.outer.count();
    p.patterns = shapes.extent('m');
    p.width = p.value_width = shapes.extent('d');
    p.state = p.fold.place(shapes[0], static_cast<const T*>(in.query.data), true, 1);
    p.stored = p.fold.place(shapes[1], static_cast<const char*>(in.key.data), false, 1);
    p.stored_rows = {nullptr, in.key.type, p.width, shapes[1].inner[0], shapes[1].inner[1]};
    p.beta = p.fold.place(shapes[2], static_cast<const double*>(in.scale.data), false, -1);
    p.mask = p.fold.place(shapes[3], static_cast<const bool*>(in.mask.data), true, 1);
    p.bias = p.fold.place(shapes[4], static_cast<const T*>(in.bias.data), true, 1);
    p.causal = {rule.on, rule.shift};
    const Placed<T> to = p.fold.template place_output<T>(out, shapes.batch_rank());
    DotScores<T>(p, to).run();
  });
}

}  // namespace recollect::score
