// SPDX-License-Identifier: BSD-3-Clause
/// The only place the version is written; the build files read it from here.
#pragma once

namespace recollect {

inline constexpr char version[] = "0.1.0";

}  // namespace recollect
