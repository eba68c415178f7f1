# SPDX-License-Identifier: BSD-3-Clause
"""Associative memories for NumPy: Hopfield retrieval, attention, and sparse attentive backtracking, forward and backward.

>>> import numpy as np, recollect as rc
>>> rng = np.random.default_rng(0)
>>> patterns = rng.standard_normal((1000, 64))
>>> cue = patterns[7] + 0.5 * rng.standard_normal(64)
>>> recalled = rc.hopfield.retrieve(cue[None], patterns, beta=2.0)
>>> bool(np.abs(recalled - patterns[7]).max() < 1e-6)
True
"""

from . import _attention_vjp, _backtracking_vjp, _hopfield_vjp, attention, backtracking, hopfield, layers
from ._config import show_config
from ._core import core as _core
from ._separation import separations
from ._threads import get_num_threads, set_num_threads
from ._vjp import vjp

del _attention_vjp, _backtracking_vjp, _hopfield_vjp

__all__ = [
    "attention",
    "backtracking",
    "get_num_threads",
    "hopfield",
    "layers",
    "separations",
    "set_num_threads",
    "show_config",
    "vjp",
]
__version__: str = _core.build_info()["version"]
