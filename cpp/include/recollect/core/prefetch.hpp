// SPDX-License-Identifier: BSD-3-Clause
/// Asking for memory before it is needed.
#pragma once

namespace recollect::detail {

enum class cache { nearest, second };

/// The line of memory that an address lies in. To a compiler this has no effect, and a function that does nothing else is dropped where it
/// is not inlined: the empty statement is what keeps it.
template <cache Level = cache::nearest, bool Write = false>
inline void prefetch(const void* address) {
  __builtin_prefetch(address, Write ? 1 : 0, Level == cache::nearest ? 3 : 2);
  asm volatile("");
}

}  // namespace recollect::detail
