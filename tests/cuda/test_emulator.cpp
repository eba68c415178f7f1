// SPDX-License-Identifier: BSD-3-Clause
/// The emulator finds what it is there to find.
#include "check.hpp"
#include "emulator.hpp"

namespace {

struct Arguments {
  float* out = nullptr;
  int wrong = 0;
};

/// Every thread tells its neighbour a number through shared memory, and warps and blocks sum it up.
struct Exchange {
  using Arguments = ::Arguments;
  static constexpr int threads = 64;

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    float* const shared = reinterpret_cast<float*>(thread.shared());
    const int i = thread.index();
    if (a.wrong == 1 && i == 5) return;  // a thread that ends before a barrier
    shared[i] = static_cast<float>(i);
    if (a.wrong != 2) thread.barrier();               // a missing one
    if (a.wrong == 3 && i < 7) thread.barrier();      // one that not all meet
    if (a.wrong == 4 && i == 0) shared[threads] = 1;  // beyond the end
    float sum = shared[(i + 1) % threads];
    if (a.wrong == 5 && i % 2) return;  // lanes that a shuffle waits for
    sum = recollect::cuda::sum_of_lanes<32>(thread, sum);
    const bool last = thread.any(i == threads - 1 && a.wrong != 6);
    a.out[thread.block() * threads + i] = last ? sum : -1;
  }
};

std::string complaint(int wrong, std::uint64_t seed) {
  std::vector<float> out(Exchange::threads);
  emulator::Device device(seed);
  try {
    device.launch<Exchange>(1, Exchange::threads * sizeof(float), {out.data(), wrong});
  } catch (const std::exception& error) {
    return error.what();
  }
  for (float x : out)
    if (!(x == x)) return "NaN";
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

int main() {
  std::vector<float> out(3 * Exchange::threads);
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    emulator::Device device(seed);
    device.launch<Exchange>(3, Exchange::threads * sizeof(float), {out.data(), 0});
    for (int b = 0; b < 3; ++b)
      for (int i = 0; i < Exchange::threads; ++i) CHECK_EQUAL(out[b * Exchange::threads + i], i < 32 ? 528.0f : 1488.0f);
  }
  int met = 0;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    CHECK(contains(complaint(1, seed), "stands still: 1 threads have ended"));
    CHECK(contains(complaint(1, seed), "waits at the barrier of test_emulator.cpp"));
    met += complaint(2, seed) == "NaN";
    CHECK(contains(complaint(3, seed), "barrier of test_emulator.cpp") || contains(complaint(3, seed), "stands still"));
    CHECK(contains(complaint(4, seed), "beyond the shared memory"));
    CHECK(contains(complaint(5, seed), "waits at the shuffle of device.hpp"));
    CHECK_EQUAL(complaint(6, seed), "");
  }
  CHECK_EQUAL(met, 5);  // a missing barrier shows as poison, whatever the seed
  return check::report();
}
