// SPDX-License-Identifier: BSD-3-Clause
/// What Hopper has more than cards before it: barriers in shared memory with phases and byte counts, copies that arrive some time, and
/// products that warpgroups start and later wait for (recall_sm90.hpp tells the words). What this finds beside what emulator.hpp does:
/// waits for the wrong phase or for none, more arrivals than expected, a stage that is overwritten while it is read, registers that are
/// touched while a product runs, wrong descriptors, stores that copies and products cannot see yet. Numbers are taken out of shared memory
/// by the descriptor, its strides and the swizzle, address by address.
#pragma once

#include "emulator_sm80.hpp"
#include <map>

#include "recollect/cuda/number.hpp"
#include "recollect/cuda/tensor_tile.hpp"

namespace emulator {

/// A product of a warpgroup as one of its threads has asked for it.
struct Product {
  float* sums;
  const std::uint32_t* a;
  std::uint32_t a_then[4];
  std::uint64_t b;
  int columns;
  bool flip, more;
  float (*widen)(std::uint16_t);
  std::vector<float> b_then;  // of the first thread of the warpgroup

  bool same(const Product& o) const { return b == o.b && columns == o.columns && flip == o.flip && more == o.more && widen == o.widen; }
};

class HopperBlock : public AmpereBlock {
 public:
  using AmpereBlock::AmpereBlock;

  void init(std::uint32_t at, int arrivals) { barriers_[at] = {arrivals, arrivals, 0, false, false, {}}; }

  void arrive(std::uint32_t at, std::int64_t bytes) {
    PhaseBarrier& b = barrier(at);
    if (--b.pending < 0) fail("a barrier met more arrivals than it expects");
    b.bytes += bytes;
    settle(b);
  }

  void wait_phase(int thread, std::uint32_t at, bool parity, Location where) {
    while (barrier(at).parity == parity) {  // the phase that runs is the one that is waited for
      barrier(at).waiting.push_back(thread);
      wait(thread, where);
    }
  }

  void copy(std::uint32_t to, const void* from, std::uint32_t bytes, std::uint32_t at) {
    if (!barrier(at).seen) fail("a barrier is given to a copy before fence_async");
    if (to % 16 || bytes % 16 || reinterpret_cast<std::uintptr_t>(from) % 16) fail("a copy is not aligned to 16 bytes");
    if (to + bytes > shared_bytes_) fail("a copy goes beyond the shared memory of the block");
    store(to, nullptr, bytes);
    copies_.push_back({to, from, bytes, at});
  }

  /// What threads have stored becomes visible to copies and products.
  void fence_async() {
    for (auto& [at, b] : barriers_) b.seen = true;
    std::memcpy(visible_.data(), shared_, visible_.size());
  }

  void start(int thread, Product product) {
    if (!fenced_[thread]) fail("a product is started without start_products");
    if (thread % recollect::cuda::warpgroup_size == 0) product.b_then = right(product);
    if (!running(thread, product.sums)) {
      auto& kept = kept_[{thread, product.sums}];
      kept.assign(product.sums, product.sums + product.columns / 2);
      std::fill_n(product.sums, product.columns / 2, poison);
    }
    queues_[thread].push_back(std::move(product));
    ++uncommitted_[thread];
  }
  void fence(int thread) { fenced_[thread] = true; }
  void commit(int thread) {
    groups_[thread].push_back(uncommitted_[thread]);
    uncommitted_[thread] = 0;
    fenced_[thread] = false;
  }

  /// All threads of the warpgroup meet; the last of them does what is to be done.
  void finish(int thread, int left, Location where) {
    const int group = thread / recollect::cuda::warpgroup_size, first = group * recollect::cuda::warpgroup_size;
    if (++met_[group] < recollect::cuda::warpgroup_size) return wait(thread, where);
    met_[group] = 0;
    while (static_cast<int>(groups_[first].size()) > left) run_group(first);
    for (int i = first; i < first + recollect::cuda::warpgroup_size; ++i)
      if (i != thread) wake(i);
  }

 protected:
  void begin() override {
    AmpereBlock::begin();
    const std::size_t n = static_cast<std::size_t>(size());
    barriers_.clear();
    copies_.clear();
    slowness_ = 0;
    kept_.clear();
    visible_.assign(static_cast<std::size_t>(shared_bytes_), 0xff);
    queues_.assign(n, {});
    groups_.assign(n, {});
    uncommitted_.assign(n, 0);
    fenced_.assign(n, false);
    met_.assign(n / recollect::cuda::warpgroup_size + 1, 0);
  }

  bool work(std::mt19937_64& random, bool idle) override {
    if (slowness_ == 0) slowness_ = std::uint64_t{1} << random() % 17;
    if (copies_.empty() || (!idle && random() % slowness_)) return false;
    std::swap(copies_[random() % copies_.size()], copies_.back());
    const Copy done = copies_.back();
    copies_.pop_back();
    store(done.to, done.from, done.bytes);
    barrier(done.barrier).bytes -= done.bytes;
    settle(barrier(done.barrier));
    return true;
  }

 private:
  struct PhaseBarrier {
    int arrivals = 0, pending = 0;
    std::int64_t bytes = 0;
    bool parity = false, seen = false;
    std::vector<int> waiting;
  };
  struct Copy {
    std::uint32_t to;
    const void* from;
    std::uint32_t bytes, barrier;
  };
  static constexpr float poison = std::numeric_limits<float>::signaling_NaN();

  PhaseBarrier& barrier(std::uint32_t at) {
    const auto found = barriers_.find(at);
    if (found == barriers_.end()) fail("there is no barrier at " + std::to_string(at));
    return found->second;
  }

  void settle(PhaseBarrier& b) {
    if (b.pending > 0 || b.bytes != 0) return;
    b.pending = b.arrivals;
    b.parity = !b.parity;
    for (int thread : b.waiting) wake(thread);
    b.waiting.clear();
  }

  void store(std::uint32_t to, const void* from, std::uint32_t bytes) {
    for (unsigned char* memory : {static_cast<unsigned char*>(shared_), visible_.data()})
      from ? std::memcpy(memory + to, from, bytes) : std::memset(memory + to, 0xff, bytes);
  }

  bool running(int thread, const float* sums) const {
    const auto& queue = queues_[thread];
    return std::any_of(queue.begin(), queue.end(), [&](const Product& p) { return p.sums == sums; });
  }

  /// The right operand, 16 x columns, as its descriptor says.
  std::vector<float> right(const Product& p) const {
    const auto field = [&](int shift) { return static_cast<std::uint32_t>(p.b >> shift & 0x3fffu) << 4; };
    const std::uint32_t begin = field(0), leading = field(16), stride = field(32);
    if (p.b >> 62 != 1) fail("a descriptor has another swizzle than that of 128 bytes");
    std::vector<float> b;
    for (std::uint32_t k = 0; k < 16; ++k)
      for (std::uint32_t n = 0; n < static_cast<std::uint32_t>(p.columns); ++n) {
        const std::uint32_t plain =
            p.flip ? begin + n / 64 * leading + n % 64 * 2 + k / 8 * stride + k % 8 * 128 : begin + n / 8 * stride + n % 8 * 128 + k * 2;
        const std::uint32_t at = recollect::cuda::swizzled(plain);
        if (at + 2 > visible_.size()) fail("a descriptor points beyond shared memory");
        std::uint16_t bits;
        std::memcpy(&bits, visible_.data() + at, 2);
        b.push_back(p.widen(bits));
      }
    return b;
  }

  void run_group(int first) {
    using namespace recollect::cuda;
    const int count = groups_[first].front();
    for (int t = first; t < first + warpgroup_size; ++t) {
      if (groups_[t].empty() || groups_[t].front() != count) fail("the threads of a warpgroup have started different products");
      groups_[t].erase(groups_[t].begin());
    }
    for (int i = 0; i < count; ++i) run_product(first);
  }

  void run_product(int first) {
    using namespace recollect::cuda;
    const Product lead = queues_[first].front();
    const std::vector<float> b = right(lead);
    if (std::memcmp(b.data(), lead.b_then.data(), b.size() * sizeof(float)) != 0) fail("shared memory changed while a product read it");
    std::vector<float> a(64 * 16);
    std::vector<float*> sums;
    for (int t = 0; t < warpgroup_size; ++t) {
      const Product p = queues_[first + t].front();
      if (!p.same(lead)) fail("the threads of a warpgroup have started different products");
      if (std::memcmp(p.a, p.a_then, sizeof p.a_then) != 0) fail("an operand's registers changed while a product read them");
      for (int w = 0; w < 4; ++w)
        for (int k = 0; k < 2; ++k)
          a[operand_row(t, w) * 16 + operand_column(t, w) + k] = p.widen(static_cast<std::uint16_t>(p.a[w] >> 16 * k));
      sums.push_back(kept_[{first + t, p.sums}].data());
    }
    for (int t = 0; t < warpgroup_size; ++t)
      for (int i = 0; i < lead.columns / 2; ++i) {
        const float* const row = a.data() + accumulator_row(t, i) * 16;
        float sum = lead.more ? sums[t][i] : 0;
        for (int k = 0; k < 16; ++k) sum += row[k] * b[k * lead.columns + accumulator_column(t, i)];
        sums[t][i] = sum;
      }
    for (int t = first; t < first + warpgroup_size; ++t) hand_over(t);
  }

  /// The oldest product of a thread is done; sums that no other one adds to are the thread's again.
  void hand_over(int thread) {
    const Product p = std::move(queues_[thread].front());
    queues_[thread].erase(queues_[thread].begin());
    if (running(thread, p.sums)) return;
    for (int i = 0; i < p.columns / 2; ++i)
      if (std::memcmp(p.sums + i, &poison, sizeof poison) != 0) fail("sums were touched while a product added to them");
    const auto kept = kept_.find({thread, p.sums});
    std::copy(kept->second.begin(), kept->second.end(), p.sums);
    kept_.erase(kept);
  }

  std::map<std::uint32_t, PhaseBarrier> barriers_;
  std::vector<Copy> copies_;
  std::uint64_t slowness_ = 0;          // of the copies of this block: about one arrives in so many steps
  std::vector<unsigned char> visible_;  // shared memory as copies and products see it
  std::vector<std::vector<Product>> queues_;
  std::vector<std::vector<int>> groups_;  // of each thread: how many products are in each group that was committed
  std::vector<int> uncommitted_, met_;
  std::vector<bool> fenced_;
  std::map<std::pair<int, float*>, std::vector<float>> kept_;
};

class HopperThread : public AmpereThread {
 public:
  static constexpr int architecture = 90;

  HopperThread(HopperBlock& block, int index) : AmpereThread(block, index), hopper_(block) {}

  void init(std::uint32_t barrier, int arrivals) const { hopper_.init(barrier, arrivals); }
  void arrive(std::uint32_t barrier) const { hopper_.arrive(barrier, 0); }
  void expect(std::uint32_t barrier, std::uint32_t bytes) const { hopper_.arrive(barrier, bytes); }
  void wait(std::uint32_t barrier, bool parity, Location at = Location::current()) const {
    hopper_.wait_phase(index_, barrier, parity, at);
  }
  void copy(std::uint32_t to, const void* from, std::uint32_t bytes, std::uint32_t barrier) const {
    hopper_.copy(to, from, bytes, barrier);
  }
  void fence_async() const { hopper_.fence_async(); }
  template <int>
  void give_registers() const {}
  template <int>
  void take_registers() const {}
  void start_products() const { hopper_.fence(index_); }
  void commit_products() const { hopper_.commit(index_); }
  template <int left, int count>
  void finish_products(float (&)[count], Location at = Location::current()) const {
    hopper_.finish(index_, left, at);
  }
  template <class T, int columns, bool flip>
  void products(float (&sums)[columns / 2], const std::uint32_t (&a)[4], std::uint64_t b, bool more) const {
    const auto widen = [](std::uint16_t bits) { return recollect::widen<float>(T{bits}); };
    hopper_.start(index_, {sums, a, {a[0], a[1], a[2], a[3]}, b, columns, flip, more, +widen, {}});
  }

 private:
  HopperBlock& hopper_;
};

/// Compute capability 9.0.
using Hopper = DeviceOf<HopperBlock, HopperThread>;

}  // namespace emulator
