# SPDX-License-Identifier: BSD-3-Clause
"""What all layers share: named parameters and how they start, tapes, and checks of what callers hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, sqrt
from numbers import Real
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _array

Array = NDArray[Any]
Gradients = dict[str, Array]
Start = Callable[[np.random.Generator, tuple[int, ...]], Any]
# Takes a cotangent, adds to the gradients of parameters, returns the cotangent of the input.
Back = Callable[[Array, Gradients], Array]
G = TypeVar("G")


class Tape(Generic[G]):
    """What `backward` needs of one `forward`. It may be used more than once. It refers to inputs and parameters and does not copy
    them: call `backward` before anything writes to them."""

    __slots__ = ("layer", "pullback", "shape")

    def __init__(self, layer: Layer[G], shape: tuple[int, ...], pullback: Callable[[Array], G]) -> None:
        self.layer, self.shape, self.pullback = layer, shape, pullback


class Layer(Generic[G]):
    """A function with named parameters.

    ``parameters`` is a dict of arrays by name, all of ``dtype``, to be written in place: ``layer.parameters[name] -= rate * g[name]``.
    ``init(rng)`` draws them anew; a constructor without `rng` draws them from ``numpy.random.default_rng(0)``. Inputs are converted
    to ``dtype``. ``layer(...)`` is ``layer.forward(...)[0]``.
    """

    public_name: ClassVar[str] = ""  # in errors, where it is not that of the class
    module: ClassVar[str] = "layers"

    def __init__(self, dtype: DTypeLike, rng: np.random.Generator | None) -> None:
        self.name = f"{self.module}.{self.public_name or type(self).__name__}"
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"{self.name}: dtype is {self.dtype}; expected float32 or float64")
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"{self.name}: rng is a {type(rng).__name__}; expected a numpy.random.Generator")
        self.parameters: Gradients = {}
        self._starts: dict[str, tuple[tuple[int, ...], Start]] = {}
        self._inside: tuple[tuple[Layer[Any], str], ...] = ()

    def _declare(self, name: str, shape: tuple[int, ...], start: Start) -> None:
        self._starts[name] = (shape, start)
        self.parameters[name] = np.empty(shape, self.dtype)

    def _declare_linear(self, name: str, width_in: int, width_out: int, bias: bool, start: Start) -> None:
        self._declare(f"{name}.weight", (width_out, width_in), start)
        if bias:
            self._declare(f"{name}.bias", (width_out,), zeros)

    def _adopt(self, inner: Layer[Any], prefix: str = "") -> None:
        """Makes the parameters of a layer inside this one parameters of this one: the same arrays, under `prefix`."""
        for name, (shape, start) in inner._starts.items():
            self._starts[prefix + name] = (shape, start)
            self.parameters[prefix + name] = inner.parameters[name]
        self._inside = (*self._inside, (inner, prefix))

    def _begin(self, rng: np.random.Generator | None) -> None:
        self.init(np.random.default_rng(0) if rng is None else rng)

    def init(self, rng: np.random.Generator) -> None:
        """Draws all parameters anew, in their order, into the arrays that they are in."""
        self._check_parameters()
        for name, (shape, start) in self._starts.items():
            self.parameters[name][...] = start(rng, shape)

    def backward(self, tape: Tape[G], d_out: Any) -> G:
        """Gradients of ``sum(d_out * out)``: a named tuple of those of the inputs, in the order of `forward`'s arguments (None for
        one that was not given), and last ``parameters``, a dict by name.

        Raises
        ------
        ValueError
            A tape of another layer, or `d_out` of another shape than the output.
        TypeError
            A `tape` that is none, or a `d_out` whose dtype is no number.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"{self.name}: tape is a {type(tape).__name__}; expected what forward returned")
        if tape.layer is not self:
            raise ValueError(f"{self.name}: tape is of another layer, {tape.layer.name}; expected one of this layer")
        cotangent = _array.floating(self.name, "d_out", d_out).astype(self.dtype, copy=False)
        if cotangent.shape != tape.shape:
            raise ValueError(f"{self.name}: d_out has shape {cotangent.shape}; expected {tape.shape}")
        return tape.pullback(cotangent)

    def _load(self, arrays: Mapping[str, Any]) -> None:
        """Copies arrays, one for each parameter, into the parameters; all of them or, with an error, none."""
        read = {}
        for name, (shape, _) in self._starts.items():
            if name not in arrays:
                raise ValueError(f"{self.name}: the state dict has nothing for {name}; expected shape {shape}")
            array = _array.floating(self.name, name, arrays[name])
            if array.shape != shape:
                raise ValueError(f"{self.name}: {name} has shape {array.shape} in the state dict; expected {shape}")
            read[name] = array
        unknown = [name for name in arrays if name not in self._starts]
        if unknown:
            raise ValueError(f"{self.name}: the state dict has {unknown[0]}; expected only {', '.join(self._starts)}")
        for name, array in read.items():
            self.parameters[name][...] = array

    # ------------------------------------------------------------------------------------------------------ checks

    def _check_parameters(self) -> None:
        for name, (shape, _) in self._starts.items():
            array = self.parameters.get(name)
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"{self.name}: parameters[{name!r}] is a {type(array).__name__}; expected a NumPy array"
                )
            if array.dtype != self.dtype:
                raise TypeError(f"{self.name}: parameters[{name!r}] has dtype {array.dtype}; expected {self.dtype}")
            if array.shape != shape:
                raise ValueError(f"{self.name}: parameters[{name!r}] has shape {array.shape}; expected {shape}")
        for inner, prefix in self._inside:  # in case an entry was replaced and not written to
            inner.parameters = {name: self.parameters[prefix + name] for name in inner._starts}

    def _input(self, name: str, value: Any, form: str, width: int | None) -> Array:
        """An input whose last axis is `width` long (None: any); `form` says its shape in letters."""
        array = _array.floating(self.name, name, value).astype(self.dtype, copy=False)
        if array.ndim < form.count(",") or (width is not None and array.shape[-1] != width):
            raise ValueError(f"{self.name}: {name} has shape {array.shape}; expected {form}")
        return array

    def _count(self, name: str, value: Any, least: int = 1) -> int:
        return _array.whole(self.name, name, value, least, expected=f"at least {least}")

    def _positive(self, name: str, value: Any) -> float:
        if not isinstance(value, Real):
            raise TypeError(f"{self.name}: {name} is {value!r}; expected a number")
        number = float(value)
        if not (isfinite(number) and number > 0):
            raise ValueError(f"{self.name}: {name} is {number}; expected a positive number")
        return number

    def _head_width(self, name: str, width: int, heads: int) -> int:
        """The width of each of the heads that `width` is divided among."""
        if width % heads:
            raise ValueError(f"{self.name}: {name} is {heads}; expected a divisor of the width {width}")
        return width // heads

    def _keep(
        self, mask: Any, padding: Any, padding_name: str, shape: tuple[int, ...], stored: tuple[int, ...]
    ) -> NDArray[np.bool_] | None:
        """One keep-mask of two: `mask`, True where a row may look, broadcast to `shape` (..., H, n, m), and `padding`, True where the
        last axis of `stored` (..., m) is padding."""
        keep = _array.keep_mask(self.name, mask)
        if keep is not None and not _broadcasts(keep.shape, shape):
            raise ValueError(
                f"{self.name}: mask has shape {keep.shape}; expected one that broadcasts to (..., H, n, m) = {shape}"
            )
        if padding is None:
            return keep
        dropped = _array.plain(self.name, padding_name, padding)
        if dropped.dtype != np.bool_:
            raise TypeError(f"{self.name}: {padding_name} has dtype {dropped.dtype}; expected bool, True for padding")
        if (
            dropped.ndim < 1
            or dropped.shape[-1] != stored[-1]
            or not _broadcasts(dropped.shape, (*shape[:-3], shape[-1]))
        ):
            raise ValueError(f"{self.name}: {padding_name} has shape {dropped.shape}; expected (..., m) = {stored}")
        kept: NDArray[np.bool_] = ~dropped[..., None, None, :]
        return kept if keep is None else kept & keep


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))


# --------------------------------------------------------------------------------------------- how parameters start


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> float:
    return 0.0


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> float:
    return 1.0


def small_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """N(0, 0.02^2)."""
    return rng.normal(0.0, 0.02, shape)


def xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """U(-a, a) with a = sqrt(6 / (fan in + fan out))."""
    bound = sqrt(6 / sum(shape))
    return rng.uniform(-bound, bound, shape)
