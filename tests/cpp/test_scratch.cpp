// SPDX-License-Identifier: BSD-3-Clause
/// The working memory of tasks: frames nest, and places stay where they are until their frame ends.
#include "check.hpp"
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "recollect/core/parallel.hpp"
#include "recollect/core/scratch.hpp"

using namespace recollect;

namespace {

void scratch() {
  Scratch memory;
  std::vector<std::pair<unsigned char*, std::size_t>> places;
  const auto take = [&](index_t bytes) {
    auto* place = memory.take<unsigned char>(bytes);
    CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(place) % Scratch::alignment, 0u);
    std::memset(place, static_cast<int>(places.size() + 1), static_cast<std::size_t>(bytes));
    places.emplace_back(place, bytes);
    return place;
  };
  const auto intact = [&] {
    for (std::size_t i = 0; i < places.size(); ++i)
      for (std::size_t k = 0; k < places[i].second; ++k)
        if (places[i].first[k] != i + 1) return false;
    return true;
  };
  take(100);
  for (int round = 0; round < 3; ++round) {
    const std::size_t before = places.size();
    unsigned char* inner = nullptr;
    {
      const Scratch::Frame frame(memory);
      inner = take(1000);
      take(3 << 20);  // more than a chunk: what is taken already does not move
      take(0);
      {
        const Scratch::Frame deeper(memory);
        take(1 << 20);
        take(1);
        CHECK(intact());
        places.resize(places.size() - 2);
      }
      take(5 << 20);
      CHECK(intact());
    }
    places.resize(before);
    CHECK(intact());
    const Scratch::Frame again(memory);
    CHECK_EQUAL(memory.take<unsigned char>(1), inner);
  }
  set_num_threads(3);
  std::atomic<bool> good = true;
  parallel_for(50, [&](index_t i) {
    const Scratch::Frame frame(Scratch::local());
    index_t* mine = Scratch::local().take<index_t>(500);
    std::fill(mine, mine + 500, i);
    for (int k = 0; k < 500; ++k) good = good && mine[k] == i;
  });
  CHECK(good.load());
}

}  // namespace

int main() {
  scratch();
  return check::report();
}
