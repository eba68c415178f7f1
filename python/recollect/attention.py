# SPDX-License-Identifier: BSD-3-Clause
"""Attention: queries read values through their keys. It is one step of Hopfield retrieval with values, on the same fused kernel.

Soft, key-value, self, cross, masked, sparse and hard attention are `attend` with the operands and the separation that the name says;
`sample` draws what is read, `point` gives the distribution itself, `attend_structured` has two levels.
"""

from ._attention import Attention, attend
from ._pointer import point
from ._sampling import Sample, sample
from ._score import Additive, Bilinear
from ._structured import attend_structured

for _op in (attend, attend_structured, point, sample):
    _op.__module__ = __name__

__all__ = ["Additive", "Attention", "Bilinear", "Sample", "attend", "attend_structured", "point", "sample"]
