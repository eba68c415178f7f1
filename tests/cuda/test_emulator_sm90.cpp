// SPDX-License-Identifier: BSD-3-Clause
/// The emulator of what only Hopper has finds what it is there to find.
#include "check.hpp"
#include "emulator_sm90.hpp"

namespace {

using namespace recollect;
using Tile = cuda::TensorTile<64, 64>;

struct Arguments {
  const char* tile = nullptr;
  float* out = nullptr;
  int wrong = 0;
};

/// One tile is brought, and its first 16 columns are multiplied by ones: sums over 16 numbers of each of 64 patterns.
struct Sum {
  using Arguments = ::Arguments;
  static constexpr int architecture = 90, threads = 128;

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const std::uint32_t tile = thread.address(thread.shared()), barrier = tile + Tile::bytes;
    const auto bring = [&](std::uint32_t from) {
      thread.expect(barrier, Tile::bytes / 2);
      thread.copy(tile + from, a.tile + from, Tile::bytes / 2, barrier);
    };
    if (thread.index() == 0) {
      thread.init(barrier, 2);
      if (a.wrong != 1) thread.fence_async();
      bring(0);
      bring(Tile::bytes / 2);
      if (a.wrong == 2) thread.arrive(barrier);
    }
    thread.barrier();
    if (a.wrong != 3) thread.wait(barrier, a.wrong == 4);
    std::uint32_t ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
    float sums[32] = {};
    if (a.wrong != 5) thread.start_products();
    const std::uint32_t begin = a.wrong == 6 ? barrier : tile;
    thread.template products<float16, 64, false>(sums, ones, cuda::columns_descriptor<Tile>(begin, 0), false);
    thread.commit_products();
    if (a.wrong == 7) sums[3] = 0;
    if (a.wrong == 8) ones[0] = 0;
    if (a.wrong == 9) thread.barrier();
    if (a.wrong == 9 && thread.index() == 0) thread.copy(tile, a.tile + 1024, 1024, barrier);
    if (a.wrong == 10 && thread.index() == 77) return;
    thread.template finish_products<0>(sums);
    for (int i = 0; i < 32; ++i)
      a.out[cuda::accumulator_row(thread.index(), i) * 64 + cuda::accumulator_column(thread.index(), i)] = sums[i];
  }
};

std::string complaint(const std::vector<char>& tile, int wrong, std::uint64_t seed, std::vector<float>& out) {
  emulator::Hopper device(seed);
  try {
    device.launch<Sum>(1, Tile::bytes + 8, {tile.data(), out.data(), wrong});
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

int main() {
  std::vector<char> tile(Tile::bytes);
  std::vector<float> out(64 * 64), wanted(64);
  for (int pattern = 0; pattern < 64; ++pattern)
    for (int column = 0; column < 64; ++column) {
      const float value = static_cast<float>(pattern % 7 + column % 5);
      const std::uint16_t bits = cuda::narrow<float16>(value).bits;
      std::memcpy(tile.data() + Tile::offset(pattern, column), &bits, 2);
      if (column < 16) wanted[pattern] += value;
    }
  const char* const complaints[] = {"",
                                    "before fence_async",
                                    "more arrivals",
                                    "",
                                    "",
                                    "without start_products",
                                    "beyond shared memory",
                                    "sums were touched",
                                    "registers changed",
                                    "shared memory changed",
                                    "stands still"};
  for (std::uint64_t seed = 0; seed < 5; ++seed)
    for (int wrong = 0; wrong <= 10; ++wrong) {
      std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
      const std::string said = complaint(tile, wrong, seed, out);
      bool right = said.empty();
      for (int row = 0; row < 64; ++row)
        for (int column = 0; column < 64; ++column) right = right && out[row * 64 + column] == wanted[column];
      if (wrong == 0) CHECK(right);
      if (wrong == 3 || wrong == 4) continue;
      check::that(said.find(complaints[wrong]) != std::string::npos, __FILE__, __LINE__, check::shown(wrong) + ": " + said);
    }
  // Not waiting, and waiting for a phase that is over, is seen as soon as the copy is late.
  int met = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    for (int wrong : {3, 4}) {
      std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
      const std::string said = complaint(tile, wrong, seed, out);
      met += !said.empty() || out[0] != wanted[0];
    }
  CHECK(met >= 20);
  return check::report();
}
