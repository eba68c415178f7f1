# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA backend of recollect, which finds it here. There is nothing to call."""
