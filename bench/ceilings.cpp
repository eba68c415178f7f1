// The two limits a kernel can run into: arithmetic (fused multiply-add) and memory (reading).
//
// Compiled for the machine at hand by ceilings.py and called through ctypes. It shares no code with
// the library on purpose: a limit that is measured with the code it is meant to judge is no limit.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// The chains must cover latency x issue width (8 on current x86-64, 16 on wide arm64 cores) and
// still fit into the registers together with the two operands: 32 registers with AVX-512 and on
// arm64, else 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 16;
#else
constexpr int kChains = 12;
#endif

template <typename T>
struct Packet {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // Memory is read through a type of its own: any alignment, and allowed to alias.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

// Keeps a result alive without a store that the optimiser could reason about.
std::atomic<double> sink{0.0};

template <typename T>
double horizontal_sum(const typename Packet<T>::type& x) {
  double sum = 0.0;
  for (int i = 0; i < Packet<T>::lanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// Runs body(thread) on `threads` threads and returns the seconds from a common start to the last
// end. Threads are created before the clock starts, so that their creation is not part of the
// figure.
template <typename Body>
double seconds_on(int threads, const Body& body) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      body(t);
    });
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go.store(true, std::memory_order_release);
  body(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <typename T>
void multiply_add(std::int64_t iterations) {
  using packet = typename Packet<T>::type;
  // Volatile, so that the factors are unknown at compile time; x -> x a + b stays near one for
  // ever.
  volatile T a_source = T(0.5), b_source = T(0.5);
  const packet a = packet{} + a_source, b = packet{} + b_source;
  packet chain[kChains];
  for (int c = 0; c < kChains; ++c) chain[c] = packet{} + T(c);
  for (std::int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * a + b;
  }
  packet total{};
  for (int c = 0; c < kChains; ++c) total += chain[c];
  sink.store(horizontal_sum<T>(total), std::memory_order_relaxed);
}

template <typename T>
double fma_gflops(int threads, std::int64_t iterations) {
  const double seconds = seconds_on(threads, [&](int) { multiply_add<T>(iterations); });
  return 2.0 * kChains * Packet<T>::lanes * static_cast<double>(iterations) * threads / seconds * 1e-9;
}

void read_all(const float* data, std::int64_t count) {
  using unaligned = Packet<float>::unaligned;
  constexpr int streams = 8;  // enough sums in flight that the additions never wait for each other
  constexpr std::int64_t step = streams * Packet<float>::lanes;
  constexpr std::int64_t ahead = 2048;  // 8 KiB: the hardware prefetcher alone leaves a tenth of the bandwidth
  Packet<float>::type sum[streams] = {};
  for (std::int64_t i = 0; i + step <= count; i += step) {
    for (int s = 0; s < streams; ++s) {
      const float* here = data + i + s * Packet<float>::lanes;
      __builtin_prefetch(here + ahead);
      sum[s] += *reinterpret_cast<const unaligned*>(here);
    }
  }
  Packet<float>::type total{};
  for (int s = 0; s < streams; ++s) total += sum[s];
  sink.store(horizontal_sum<float>(total), std::memory_order_relaxed);
}

}  // namespace

// GFLOP/s of independent multiply-adds that never touch memory.
extern "C" double bench_fma_f32(int threads, std::int64_t iterations) { return fma_gflops<float>(threads, iterations); }
extern "C" double bench_fma_f64(int threads, std::int64_t iterations) { return fma_gflops<double>(threads, iterations); }

// GB/s of reading `count` floats once, each thread its own contiguous part.
extern "C" double bench_read(int threads, const float* data, std::int64_t count) {
  const std::int64_t part = count / threads;
  const double seconds = seconds_on(threads, [&](int t) { read_all(data + t * part, part); });
  return static_cast<double>(part) * threads * sizeof(float) / seconds * 1e-9;
}
