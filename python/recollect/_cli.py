# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ``python -m recollect demo | retrieve | info``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EPILOG = "exit status: 0 done, 1 failed (one sentence on standard error), 2 wrong usage, 130 interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None and not (given.cmake_dir or given.include_dir):
        parser.error("give a command: demo, retrieve or info")
    try:
        (given.run if given.command else _paths)(given)
    except KeyboardInterrupt:
        print("recollect: interrupted; nothing was written", file=sys.stderr)
        return 130
    except Exception as error:
        if given.traceback:
            raise
        print(f"recollect: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _sentence(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
    return " ".join(str(text).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="python -m recollect", description="Associative memories: recall from damaged cues.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"recollect {__version__}")
    parser.add_argument("--cmake-dir", action="store_true", help="print the directory for -Drecollect_DIR= and stop")
    parser.add_argument("--include-dir", action="store_true", help="print the directory of the C++ headers and stop")
    parser.add_argument("--traceback", action="store_true", help="where an error came from, for reporting it")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_demo(commands)
    _add_retrieve(commands)
    info = commands.add_parser("info", help="what was built and what of it runs here")
    info.set_defaults(run=_info)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="recall real images from damaged ones",
        description="Stores real images, damages every one of them, recalls them, and prints how often that works beside "
        'a nearest-neighbour search on the same cues. Needs: pip install "recollect[demo]"',
        epilog=_EPILOG,
    )
    demo.add_argument("--out", metavar="FILE", default="recollect-demo.png", help="the picture (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="fewer images, a few seconds")
    demo.set_defaults(run=_demo)


def _add_retrieve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    retrieve = commands.add_parser(
        "retrieve",
        help="recall every row of a .npy file from the patterns in another",
        description="Reads patterns (N, d) and queries (n, d), writes what is recalled (n, d), or (n, e) with --values "
        "(N, e). Files are memory-mapped and queries taken in blocks. Arithmetic is float64 if any file is float64 or "
        "integer, else float32; patterns of that type, and float16 ones under float32, are never copied into memory.",
        epilog=_EPILOG,
    )
    add = retrieve.add_argument
    add("patterns", metavar="patterns.npy")
    add("queries", metavar="queries.npy")
    add(
        "--beta", type=_positive, required=True, help="inverse temperature: large recalls one pattern, small an average"
    )
    add("--values", metavar="FILE", help="read these out instead of the patterns")
    add("--steps", type=_steps, default=1, help="updates, or 'none' for as many as it takes (default: %(default)s)")
    add("--tol", type=float, help="a row rests once an update moves it by no more than this")
    add("--block", type=_count, default=4096, metavar="ROWS", help="queries at a time (default: %(default)s)")
    add("--dtype", choices=("float32", "float64"), help="of the arithmetic and the output")
    add("-o", "--output", required=True, metavar="out.npy")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    retrieve.set_defaults(run=_retrieve)


def _positive(text: str) -> float:
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive finite number")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _steps(text: str) -> int | None:
    return None if text.lower() == "none" else _count(text)


# argparse names these functions where a text is no number at all.
_positive.__name__, _count.__name__, _steps.__name__ = "number", "whole number", "number of steps"


def _paths(given: argparse.Namespace) -> None:
    from ._paths import cmake_dir, include_dir

    if given.cmake_dir:
        print(cmake_dir())
    if given.include_dir:
        print(include_dir())


def _info(given: argparse.Namespace) -> None:
    from ._config import show_config

    print(show_config())


def _retrieve(given: argparse.Namespace) -> None:
    from ._blocks import retrieve_file

    shape, dtype = retrieve_file(
        given.patterns,
        given.queries,
        given.output,
        beta=given.beta,
        values=given.values,
        steps=given.steps,
        tol=given.tol,
        block=given.block,
        dtype=given.dtype,
        overwrite=given.overwrite,
    )
    print(f"wrote {given.output}: {shape[0]} x {shape[1]}, {dtype}")


def _demo(given: argparse.Namespace) -> None:
    from ._demo import run

    run(given.out, seed=given.seed, quick=given.quick)
