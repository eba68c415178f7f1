"""What was built, and what of it runs here."""

from __future__ import annotations

import numpy as np

from . import _backend
from ._core import available, core, level

__all__ = ["Config", "show_config"]


class Config(dict[str, object]):
    """A dict that prints as a small table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        text = {k: ", ".join(v) if isinstance(v, tuple) else v for k, v in self.items()}
        return "\n".join(f"{name:<{width}}  {value}" for name, value in text.items())

    __repr__ = __str__


def cuda_state() -> str:
    """Whether there is a CUDA backend, a device, and which kernels have been seen to work on one."""
    place = _backend.place()
    if place is None:
        return "not built"
    try:
        module = _backend.load()
    except ImportError as problem:
        return f"built ({place}), but cannot be loaded: {problem}"
    count, why = module.cards()
    here = module.card_name(0) if count else f"no device: {why}"
    return f"built ({place}); {here}; {module.evidence}"


def show_config() -> Config:
    """Report the version, the instruction-set level in use and what the core was built with.

    >>> config = show_config()
    >>> config["isa"] in config["isa_available"]
    True
    """
    build = core.build_info()
    return Config(
        version=build["version"],
        isa=level,
        isa_available=available,
        packet_bytes=build["packet_bytes"],
        compiler=build["compiler"],
        eigen=build["eigen"],
        threads=core.get_num_threads(),
        cuda=cuda_state(),
        numpy=np.__version__,
    )
