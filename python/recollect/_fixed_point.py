# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of retrieval until rest: an adjoint that is solved at the fixed point, without the steps that led there.

::

    q = f(q; theta),  J = df/dq:    d_theta = (df/dtheta)^T lambda,   (I - J) lambda = g,   d_state = 0

J = beta X^T H X, H the second derivative of Omega*, is symmetric; at a minimum of the energy I - J, its second derivative, is positive
definite, and conjugate gradients solve the system with products J v alone. Bai et al. 2019, https://arxiv.org/abs/1909.01377.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = NDArray[np.bool_]
Product = Callable[[Array], Array]

NEWTON_STEPS = 8


def dot(a: Array, b: Array) -> Array:
    """Of every row, in float64; a row's result depends on no other row."""
    product: Array = np.multiply(a, b, dtype=np.float64).sum(axis=-1, keepdims=True)
    return product


def solve(response: Product, g: Array) -> tuple[Array, Rows]:
    """x with x - J x = g for every row, and the rows where I - J is positive definite. Conjugate gradients, each row for itself."""
    eps = float(np.finfo(g.dtype).eps)
    x, r, p = np.zeros_like(g), g.copy(), g.copy()
    square = dot(r, r)
    enough = square * (4 * eps) ** 2
    definite = np.ones(square.shape, np.bool_)
    active = square > 0
    for _ in range(2 * g.shape[-1] + 8):
        if not active.any():
            break
        along = p - response(p)
        curvature, length = dot(p, along), dot(p, p)
        definite &= ~active | (curvature > 64 * eps * length)
        active &= definite
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(active, square / curvature, 0)
            x += (step * p).astype(g.dtype)
            r -= (step * along).astype(g.dtype)
            left = np.where(active, dot(r, r), square)
            p = np.where(active, r + (left / np.where(square > 0, square, 1)) * p, 0).astype(g.dtype)
        square = left
        active &= square > enough
    definite &= ~active | (square <= enough * 1e8)
    return x, definite[..., 0]


class Point:
    """A state, its update, and the response of the update to the state."""

    def __init__(self, state: Array, update: Callable[[Array], tuple[Array, Product]]) -> None:
        self.state = state
        self.updated, self.response = update(state)
        self.moved = np.sqrt(dot(self.updated - state, self.updated - state))


def polish(state: Array, update: Callable[[Array], tuple[Array, Product]]) -> Array:
    """A state that has nearly come to rest, brought to the fixed point by Newton's method; a row that gains nothing stays."""
    best = Point(state, update)
    eps = float(np.finfo(state.dtype).eps)
    moving = best.moved > 0
    for _ in range(NEWTON_STEPS):
        moving &= best.moved > 2 * eps * np.sqrt(dot(best.state, best.state))
        if not moving.any():
            break
        towards, definite = solve(best.response, np.where(moving, best.updated - best.state, 0).astype(state.dtype))
        next_state = np.where(definite[..., None], best.state + towards, best.updated)
        tried = Point(np.where(moving, next_state, best.state), update)
        moving &= tried.moved < best.moved
        if not moving.any():
            break
        best = Point(np.where(moving, tried.state, best.state), update)
    return best.state


def refuse(op: str, rows: Rows, why: str) -> None:
    """Fails if there are such rows."""
    if rows.any():
        first = ", ".join(str(tuple(int(i) for i in row)) for row in np.argwhere(rows)[:3])
        raise ValueError(
            f"{op}: {np.count_nonzero(rows)} of the states {why}, the first are {first}; "
            "expected steps to be a number, for the gradient of so many steps"
        )
