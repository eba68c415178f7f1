# SPDX-License-Identifier: BSD-3-Clause
"""Modern Hopfield networks: the energy of a state pattern, retrieval of what it reminds of, and a memory that holds patterns.

Ramsauer et al. 2020, "Hopfield Networks is All You Need", https://arxiv.org/abs/2008.02217
"""

from ._hopfield import Nearest, Retrieval, energy, nearest, retrieve
from ._memory import HopfieldMemory
from ._separation import margin

__all__ = ["HopfieldMemory", "Nearest", "Retrieval", "energy", "margin", "nearest", "retrieve"]
