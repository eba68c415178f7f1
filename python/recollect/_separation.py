# SPDX-License-Identifier: BSD-3-Clause
"""How a separation is named: alone, or with its parameter."""

from __future__ import annotations

from math import isnan, nan
from numbers import Integral, Real
from typing import Any

from ._core import core

Separation = str | tuple[str, float]


def separations() -> tuple[tuple[str, str | None], ...]:
    """Every separation by name, with the name of its parameter or None.

    A separation turns scores z into weights p = argmax p.z - Omega(p), with the conjugate Omega*(z) = p.z - Omega(p)::

        softmax         p = exp(z) / sum exp(z)                                     Omega* = log sum exp(z)
        sparsemax       p = relu(z - tau), sum p = 1                                Omega = (|p|^2 - 1) / 2
        entmax15        entmax with alpha = 1.5
        entmax          p = relu((alpha - 1) z - tau)^(1/(alpha - 1)), sum p = 1    Omega = (sum p^alpha - 1) / (alpha (alpha - 1))
        normmax         p ~ relu(z - tau)^(1/(alpha - 1))                           Omega = |p|_alpha - 1
        k_subset        p = clip(z - tau, 0, 1), sum p = k                          Omega = (|p|^2 - k) / 2
        top_k_softmax   softmax of the k largest, among equals the first
        hard            all weight on the largest, among equals the first           Omega* = max z
        linear          p = z                                                       Omega = |p|^2 / 2

    Give the name, or ``(name, parameter)``: ``separation="sparsemax"``, ``separation=("entmax", 1.3)``. All but softmax and linear
    give weight to few patterns; reading and gradients then touch those alone.

    Martins and Astudillo 2016, https://arxiv.org/abs/1602.02068; Peters et al. 2019, https://arxiv.org/abs/1905.05702; Blondel et al.
    2020, https://arxiv.org/abs/1901.02324; Santos et al. 2024, https://arxiv.org/abs/2411.08590.

    Examples
    --------
    >>> import recollect as rc
    >>> dict(rc.separations())["entmax"]
    'alpha'
    """
    return tuple(core.separations())


_PARAMETERS = dict(core.separations())


def split(op: str, separation: Any) -> tuple[str, float]:
    """The name and the parameter, NaN where none was given; whether they are right is for the core to say."""
    if isinstance(separation, str):
        return separation, nan
    if isinstance(separation, tuple) and len(separation) == 2 and isinstance(separation[0], str):
        name, parameter = separation
        whole = _PARAMETERS.get(name) == "k"
        if isinstance(parameter, Integral if whole else Real) and not isinstance(parameter, bool):
            if isnan(parameter):
                raise ValueError(
                    f"{op}: separation is {separation!r}; expected a finite number as {_PARAMETERS.get(name)}"
                )
            return name, float(parameter)
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{op}: separation is {separation!r}; expected ({name!r}, {kind})")
    raise TypeError(f"{op}: separation is {separation!r}; expected a name or (name, number)")


def margin(separation: Separation) -> float:
    """By how much scores must lead for retrieval to be exact.

    ::

        q <- X^T p(beta X q) is x_i, to the last bit, if and only if beta (x_i - x_j).q >= margin for all j != i

    1 / (alpha - 1) for entmax, 1 for sparsemax and normmax, 0 for hard, and inf where a single pattern is never all that is read (softmax).
    Santos et al. 2024, https://arxiv.org/abs/2411.08590, proposition 3.

    Examples
    --------
    >>> import recollect as rc
    >>> rc.hopfield.margin("sparsemax"), rc.hopfield.margin(("entmax", 1.25))
    (1.0, 4.0)
    """
    return core.separation_margin("hopfield.margin", *split("hopfield.margin", separation))
