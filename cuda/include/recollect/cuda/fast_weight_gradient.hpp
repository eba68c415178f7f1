// SPDX-License-Identifier: BSD-3-Clause
/// What the kernels of `fast_weight_backward` share. Gradients go back chunk by chunk of tokens, with two kernels for each:
///
///     FastWeightReverse    a block for 16 columns of one sequence's S: the states of the chunk again, from the checkpoint before it, and
///                          then token by token back. What a column alone tells (d_value, d_state) is written; what is a sum over columns
///                          is left in scratch, as the sum of the block
///     FastWeightPull       a warp for each token: adds the blocks, and goes back through row norms and feature maps
///
/// The normaliser z needs sums over all columns and is no column of a block: FastWeightNormaliser tells it for all tokens before, and
/// FastWeightNormaliserReverse, between the two, leaves its share in scratch like one more block. All sums have a fixed order.
#pragma once

#include <limits>

#include "recollect/cuda/fast_weight_scan.hpp"

namespace recollect::cuda {

/// Gradients with a row for each token that are sums over columns.
enum column_sums { of_query, of_key, of_a, of_b, of_decay, column_sum_count };

/// Numbers of a token that are sums over columns: gradients of scale, of what its output and what is removed are divided by, and of beta.
enum token_numbers { of_scale, of_output, of_removal, of_beta, token_number_count };

struct FastWeightBackwardArguments {
  FastWeightArguments scan;
  TokenRows<const void> d_out, d_out_state;
  TokenRows<void> d_query, d_key, d_value, d_beta, d_a, d_b, d_decay, d_channel_decay, d_scale, d_state;
  index_t chunk = 0, number = 0;        // tokens from checkpoint to checkpoint; which of the chunks is in work
  float* checkpoints = nullptr;         // S before every chunk, by block, chunk and thread
  float* states = nullptr;              // S before every token of the chunk, by block, token and thread
  float* carried = nullptr;             // the gradient of S behind the chunk, by block and thread
  float* sums[column_sum_count] = {};   // (sequences, shares, chunk, K); null where nobody asks
  float* numbers = nullptr;             // (sequences, column blocks, T, token_number_count)
  float* normaliser = nullptr;          // (sequences, T + 1, K): z before the first and after every token; null without
  float* carried_normaliser = nullptr;  // (sequences, K): the gradient of z behind the chunk

  constexpr index_t chunks() const { return scan.tokens > chunk ? (scan.tokens + chunk - 1) / chunk : 1; }
  constexpr index_t first() const { return number * chunk; }
  constexpr index_t count() const { return scan.tokens - first() < chunk ? scan.tokens - first() : chunk; }
  constexpr bool last() const { return number + 1 == chunks(); }

  /// One at least, though it may have no column that is there.
  constexpr index_t column_blocks() const { return scan.values > 0 ? FastWeightScan<8, false>::column_blocks(scan) : 1; }
  constexpr index_t shares() const { return column_blocks() + (normaliser ? 1 : 0); }
  /// A row of sums of one block, or of the normaliser, which comes behind the blocks.
  constexpr float* sum(int kind, index_t h, index_t share, index_t token) const {
    return sums[kind] + ((h * shares() + share) * chunk + token - first()) * scan.keys;
  }
  constexpr float* numbers_of(index_t h, index_t block, index_t token) const {
    return numbers + ((h * column_blocks() + block) * scan.tokens + token) * token_number_count;
  }
  /// One of the numbers of a token, summed over the blocks.
  constexpr float number_of(int kind, index_t h, index_t token) const {
    float total = 0;
    for (index_t block = 0; block < column_blocks(); ++block) total += numbers_of(h, block, token)[kind];
    return total;
  }
  /// z after `tokens` tokens.
  constexpr float* normaliser_after(index_t h, index_t tokens) const { return normaliser + (h * (scan.tokens + 1) + tokens) * scan.keys; }
};

/// 1 / x; for gradients one below the smallest normal number over its precision counts as 0, and has none.
constexpr float inverse(float x) {
  constexpr float smallest = std::numeric_limits<float>::min() / std::numeric_limits<float>::epsilon();
  return std::fabs(x) < smallest ? 0.0f : 1 / x;
}

}  // namespace recollect::cuda
