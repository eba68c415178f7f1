# SPDX-License-Identifier: BSD-3-Clause
"""Arrays in files: a safetensors container with a kind and a version, .npy files, and writing that is all or nothing.

Memories save themselves through :func:`save_arrays` and :func:`load_arrays`; the command line reads plain
arrays through :func:`open_array`. Whatever is wrong with a file is said in one sentence that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["atomic_path", "bfloat16", "load_arrays", "open_array", "open_in_place", "save_arrays"]

PathLike: TypeAlias = "str | os.PathLike[str]"
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_VERSION = 1
# What safetensors calls the dtypes that a memory may hold. All of them are little-endian in the file.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


def bfloat16(who: str) -> np.dtype[Any]:
    """The bfloat16 dtype, which NumPy itself does not have."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(f'{who}: bfloat16 needs the ml_dtypes package: pip install "recollect[io]"') from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


@contextlib.contextmanager
def atomic_path(path: PathLike, *, overwrite: bool, who: str) -> Iterator[Path]:
    """A temporary name beside ``path``; what was written there becomes ``path`` at the end, or never.

    The temporary is removed when the body raises, KeyboardInterrupt included. It lies in the same directory
    because a rename is atomic only within one file system.
    """
    final = Path(path)
    _refuse_existing(final, overwrite, who)
    if not final.parent.is_dir():
        raise FileNotFoundError(f"{who}: there is no directory '{final.parent}' to write '{final.name}' into")
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        # Without this a power cut could leave a whole name with half the bytes.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _refuse_existing(final, overwrite, who)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool, who: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{who}: '{path}' is a directory")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{who}: '{path}' exists; it is replaced only with overwrite")


def save_arrays(
    path: PathLike,
    arrays: Mapping[str, Array],
    *,
    kind: str,
    metadata: Mapping[str, str],
    overwrite: bool,
    who: str,
) -> None:
    """Writes ``arrays`` and ``metadata`` as one safetensors file of the given ``kind``, all or nothing."""
    save_file = _safetensors(who).numpy.save_file
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = {"format": kind, "format_version": str(_VERSION), **metadata}
    with atomic_path(path, overwrite=overwrite, who=who) as temporary:
        save_file(contiguous, temporary, metadata=described)


def load_arrays(path: PathLike, *, kind: str, mmap: bool, who: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Reads what :func:`save_arrays` wrote: the arrays by name, and the metadata.

    With ``mmap`` the arrays are read-only views of the file and may be larger than memory.
    """
    path = _existing(path, who)
    safetensors = _safetensors(who)
    try:
        # The library checks the header and that the tensors cover the file exactly, so a truncated file is found here.
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{who}: '{path}' is truncated or not a safetensors file ({error})") from None
    if metadata.get("format") != kind:
        raise ValueError(f"{who}: '{path}' is a safetensors file, but it does not hold a {kind}")
    version = metadata.get("format_version", "")
    if version != str(_VERSION):
        raise ValueError(f"{who}: '{path}' has format version {version!r}; this release reads version {_VERSION}")
    mapped = _map_tensors(path, who)
    return {name: array if mmap else array.copy() for name, array in mapped.items()}, metadata


def _map_tensors(path: Path, who: str) -> dict[str, Array]:
    # safetensors' own NumPy loader copies; the offsets in its header let the file be mapped instead.
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(header_size))
    header.pop("__metadata__", None)
    arrays = {}
    for name, tensor in header.items():
        code = tensor["dtype"]
        if code != "BF16" and code not in _DTYPES:
            raise ValueError(f"{who}: '{path}' holds {name} as {code}, which no memory uses")
        dtype = bfloat16(who) if code == "BF16" else np.dtype(_DTYPES[code])
        start = 8 + header_size + tensor["data_offsets"][0]
        arrays[name] = _map(path, dtype, tuple(tensor["shape"]), start)
    return arrays


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Array:
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)


def open_array(path: PathLike, *, who: str, ndim: int = 2) -> Array:
    """An array of real numbers from a .npy file, mapped read-only."""
    path = _existing(path, who)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{who}: {_what_is_wrong(path, error)}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{who}: '{path}' is an archive of arrays (.npz); expected one array (.npy)")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{who}: '{path}' has dtype {array.dtype}; expected real numbers")
    if array.ndim != ndim:
        expected = {1: "one axis", 2: "two axes (rows, width)"}[ndim]
        raise ValueError(f"{who}: '{path}' has shape {array.shape}; expected {expected}")
    return array.view(np.ndarray)


def open_in_place(path: PathLike, dtypes: tuple[str, ...], *, who: str) -> Array:
    """A 2-D array from a .npy file in a form that can be computed with where it is, never as a copy."""
    array = open_array(path, who=who)
    if array.dtype.name not in dtypes or not array.dtype.isnative:
        expected = f"{' or '.join(dtypes)} in this machine's byte order"
        raise TypeError(f"{who}: '{path}' has dtype {array.dtype.str}; expected {expected}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{who}: '{path}' is stored column by column; save np.ascontiguousarray of it")
    return array


def _what_is_wrong(path: Path, error: Exception) -> str:
    if "objects" in str(error):
        return f"'{path}' holds Python objects; expected numbers"
    with open(path, "rb") as file:
        is_npy = file.read(6) == np.lib.format.MAGIC_PREFIX
    return f"'{path}' is truncated or damaged ({error})" if is_npy else f"'{path}' is not a .npy file"


def _existing(path: PathLike, who: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{who}: there is no file '{path}'")
    if path.is_dir():
        raise IsADirectoryError(f"{who}: '{path}' is a directory; expected a file")
    return path


def _safetensors(who: str) -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(f'{who} needs the safetensors package: pip install "recollect[io]"') from None
    return safetensors
