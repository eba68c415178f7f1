// SPDX-License-Identifier: BSD-3-Clause
/// Prints every kernel instance that can be chosen, with its threads and shared memory: name, tab, threads, tab, bytes.
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <typeinfo>

#include "recollect/cuda/recall_energy.hpp"
#include "recollect/cuda/recall_moved.hpp"
#include "recollect/cuda/recall_sink.hpp"
#include "recollect/cuda/recall_sum.hpp"
#include "recollect/cuda/select.hpp"
#include "recollect/cuda/sparse_read.hpp"

namespace {

using namespace recollect;

template <class Kernel>
void print() {
  int failed = 0;
  char* const name = abi::__cxa_demangle(typeid(Kernel).name(), nullptr, nullptr, &failed);
  std::printf("%s\t%d\t%lld\n", name, Kernel::threads, static_cast<long long>(Kernel::shared_bytes()));
  std::free(name);
}

}  // namespace

int main() {
  for (const int width : {64, 128, 256}) {
    for (const bool shared : {false, true})
      for (const dtype type : {dtype::float16, dtype::bfloat16})
        if (width <= 128) {
          cuda::select_tensor_cores(type, width, shared, []<class Kernel>() { print<Kernel>(); });
          cuda::select_backward_sm80(type, width, shared, [&]<class Rows, class Patterns>() {
            if (shared) print<Rows>();  // the same for both
            print<Patterns>();
          });
        }
    for (const auto rule : {fast_weight::rule::sum, fast_weight::rule::delta})
      for (const dtype type : {dtype::float16, dtype::bfloat16})
        if (width <= 128) cuda::select_chunk(type, width, rule, []<class Chunk, class Reverse>() { print<Chunk>(), print<Reverse>(); });
    for (const dtype type : {dtype::float32, dtype::float16, dtype::bfloat16})
      if (width <= 128)
        cuda::select_halves(type, width, [&]<class Pack, class Kernel>() {
          if (type != dtype::bfloat16) print<Pack>();  // the same for all 16-bit types
          print<Kernel>();
        });
    cuda::select_forward(width, []<class Kernel>() { print<Kernel>(); });
    cuda::select_top_k(width, []<class Kernel>() { print<Kernel>(); });
    cuda::select_backward(width, []<class Rows, class Patterns>() { print<Rows>(), print<Patterns>(); });
    cuda::select_bias(width, []<class Kernel>() { print<Kernel>(); });
    for (const bool normalised : {false, true}) cuda::select_scan(width, normalised, []<class Kernel>() { print<Kernel>(); });
    cuda::select_reverse(width, []<class Checkpoints, class Reverse>() { print<Checkpoints>(), print<Reverse>(); });
  }
  print<cuda::RecallPack<64>>();
  print<cuda::RecallPack<128>>();
  print<cuda::RecallStore>();
  print<cuda::RecallMerge>();
  print<cuda::RecallDots>();
  print<cuda::RecallSink>();
  print<cuda::RecallSinkGradient>();
  print<cuda::RecallBackwardTable>();
  print<cuda::RecallSum>();
  print<cuda::RecallSquares>();
  print<cuda::RecallEnergy>();
  print<cuda::RecallEnergyDots>();
  print<cuda::RecallMoved>();
  print<cuda::RecallRested>();
  print<cuda::CopyNormaliser>();
  print<cuda::FastWeightRows>();
  print<cuda::FastWeightDivide>();
  print<cuda::FastWeightNormaliser>();
  print<cuda::FastWeightNormaliserReverse>();
  print<cuda::FastWeightPull>();
  print<cuda::FastWeightScaleGradient>();
  print<cuda::SumSequences>();
  print<cuda::AdditiveTopKScan>();
  print<cuda::TopKRead>();
  print<cuda::TopKBackwardRows<cuda::SoftmaxChoice>>();
  print<cuda::TopKBackwardRows<cuda::SparseChoice>>();
  print<cuda::TopKBackwardPatterns>();
  print<cuda::SparseRead>();
}
