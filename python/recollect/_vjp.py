# SPDX-License-Identifier: BSD-3-Clause
"""`vjp`: the value of an op together with its pullback.

Each differentiable op says how in one function that is registered here beside it; this file knows no op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., tuple[Any, Callable[[Any], Any]]])

# op -> rule(*args, **kwargs) -> (out, pullback)
_rules: dict[Callable[..., Any], Callable[..., tuple[Any, Callable[[Any], Any]]]] = {}
_names: list[str] = []  # of the ops, as users call them


def pullback_of(op: Callable[..., Any], module: str | None = None) -> Callable[[_F], _F]:
    """Marks a function as the rule of `op`, which is public in `module` if that is not where it is defined."""

    def register(rule: _F) -> _F:
        _rules[op] = rule
        _names.append(f"{module or op.__module__.removeprefix('recollect.').lstrip('_')}.{op.__name__}")
        return rule

    return register


def vjp(op: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Value and pullback of a differentiable op.

    ::

        out, pullback = vjp(op, *args, **kwargs)        pullback(d_out) = J^T d_out

    Parameters
    ----------
    op : function
        One of `recollect.hopfield`: energy, retrieve; of `recollect.attention`: attend, sample, point, attend_structured; of
        `recollect.fastweight`; or `recollect.backtracking.sparse_read`. Where an op returns more than one array, its page says whose
        cotangent the pullback takes.
    *args, **kwargs
        Its arguments; arrays by position or by keyword.

    Returns
    -------
    out : array
        What ``op(*args, **kwargs)`` returns.
    pullback : function
        Takes d_out of the shape of `out` (a tuple where a state is returned too) and returns a named tuple with one field for each differentiable argument that was given,
        in the signature's order, of that argument's own shape: what was broadcast is summed. A score with parameters comes back as one
        of the same kind that holds their gradients. It may be called more than once. For arrays of a CUDA device (attend, retrieve
        and energy) it takes d_out there, of the type of `out`, and works on the same stream; gradients are of their operand's type,
        those of scale and beta float32.

    Raises
    ------
    TypeError
        `op` is not differentiable, or an argument is refused by `op` itself.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> patterns = np.eye(3)
    >>> out, pullback = rc.vjp(rc.hopfield.retrieve, patterns[:1], patterns, beta=1.0)
    >>> pullback(np.ones((1, 3))).state.round(6)
    array([[0., 0., 0.]])
    """
    try:
        rule = _rules[op]
    except (KeyError, TypeError):
        raise TypeError(f"vjp: op is {op!r}; expected one of {', '.join(sorted(_names))}") from None
    return rule(*args, **kwargs)
