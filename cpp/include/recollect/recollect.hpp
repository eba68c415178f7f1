// SPDX-License-Identifier: BSD-3-Clause
/// The library, in reading order. A program may include this file or only the op it needs.
#pragma once

#include "recollect/version.hpp"

// What everything is made of.
#include "recollect/core/checks.hpp"     // what every op checks of its arrays
#include "recollect/core/dtype.hpp"      // element types as values; index_t; the half-width storage types
#include "recollect/core/error.hpp"      // one exception: a status and a sentence
#include "recollect/core/parallel.hpp"   // parallel_for, the thread pool, set_executor
#include "recollect/core/placement.hpp"  // rows and outer axes: where the operands of a recall lie
#include "recollect/core/scratch.hpp"    // working memory of a task
#include "recollect/core/shapes.hpp"     // what an op expects of its operands, as a table in dimension letters
#include "recollect/core/type_list.hpp"  // names to types: how separations and feature maps are registered
#include "recollect/core/view.hpp"       // arrays that are pointed at, never owned

// Mathematics of numbers and rows; templates that packets go through too.
#include "recollect/math/exp2.hpp"            // 2^x
#include "recollect/math/feature_map.hpp"     // what keys and queries of fast weights go through: the list of feature maps
#include "recollect/math/online_softmax.hpp"  // a softmax whose scores arrive in pieces
#include "recollect/math/separation.hpp"      // how scores become weights: the list of separations
#include "recollect/math/tanh.hpp"            // tanh and the logistic function

// The ops: first what each promises, then how it is done.
#include "recollect/ops/additive_score.hpp"  // scores by a small network, and their gradient
#include "recollect/ops/attention.hpp"       // attention::attend and its gradient
#include "recollect/ops/backtracking.hpp"    // backtracking::forward, the recurrence with reminders, and its gradient
#include "recollect/ops/cells.hpp"           // the recurrent cells it can have: lstm, gru
#include "recollect/ops/fast_weight.hpp"     // fast_weight::forward and its gradient: linear attention, the delta rule and their family
#include "recollect/ops/feature_map.hpp"     // feature_map::forward and its gradient
#include "recollect/ops/hopfield.hpp"        // hopfield::energy, hopfield::retrieve and their gradients
#include "recollect/ops/score.hpp"           // scores as numbers, some rows at a time
#include "recollect/ops/sparse_read.hpp"     // backtracking::read, the sparse read alone, and its gradient
#include "recollect/ops/weights.hpp"         // weights as numbers: a separation by itself, and its gradient
#include "recollect/spec/attention.hpp"      // attention: equation, operands, shapes
#include "recollect/spec/backtracking.hpp"   // sparse attentive backtracking: equations, which edges carry gradient, operands
#include "recollect/spec/fast_weight.hpp"    // fast weights: the recurrence, its rules, operands, shapes
#include "recollect/spec/hopfield.hpp"       // energy and retrieval: equations, operands, shapes
#include "recollect/spec/score.hpp"          // scores: equations, operands, shapes
#include "recollect/spec/weights.hpp"        // weights: what is computed, shapes
