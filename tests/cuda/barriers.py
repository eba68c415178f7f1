"""Is every barrier of every kernel needed, and would the tests notice if it were missing? Takes one away at a time and runs the emulator.
On tensor cores also every wait, arrival, fence, and end of a group of copies or products.

python -m tests.cuda.barriers          some minutes; lists what is not noticed
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "recall_forward": "test_recall",
    "recall_backward": "test_recall",
    "recall_backward_bias": "test_recall_gradients",
    "recall_backward_sm80": "test_recall_backward_sm80",
    "recall_halves": "test_recall_backward_sm80",
    "recall_sum": "test_recall_gradients",
    "recall_sm90": "test_recall_sm90",
    "recall_pack": "test_recall_bank",
    "recall_sm80": "test_recall_sm80",
    "recall_half_rows": "test_recall_sm80",
    "recall_half_pack": "test_recall_sm80",
    "fast_weight_scan": "test_fast_weight",
    "fast_weight_chunk": "test_fast_weight_chunk",
    "fast_weight_chunk_reverse": "test_fast_weight_chunk_gradient",
    "fast_weight_columns": "test_fast_weight_chunk",
    "fast_weight_tokens": "test_fast_weight_chunk",
    "fast_weight_rows": "test_fast_weight_chunk",
    "fast_weight_reverse": "test_fast_weight_gradient",
    "top_k_scan": "test_top_k",
    "top_k_backward": "test_top_k",
}
ORDER = re.compile(
    r"\s*(if \(.*\) )?thread\.(barrier|fence_async|wait|arrive|expect|start_products|commit_products|template finish_products<\d>|"
    r"commit_copies|template wait_copies<[^>]*>|warp_barrier)"
    r"\(.*\);( *//.*)?"
)


def mutants() -> Iterator[tuple[str, int, str]]:
    """File, line number from 0, and what the line becomes."""
    for name in KERNELS:
        path = ROOT / "cuda" / "include" / "recollect" / "cuda" / f"{name}.hpp"
        for number, line in enumerate(path.read_text().splitlines()):
            if ORDER.fullmatch(line):
                yield name, number, ""
            elif "thread.any(odd)" in line:
                yield name, number, line.replace("thread.any(odd)", "odd")


def noticed(name: str, number: int, line: str, directory: Path) -> bool:
    """Whether the emulator's tests fail with the line changed."""
    shutil.copytree(ROOT / "cuda" / "include", directory / "include", dirs_exist_ok=True)
    path = directory / "include" / "recollect" / "cuda" / f"{name}.hpp"
    lines = path.read_text().splitlines()
    lines[number] = line
    path.write_text("\n".join(lines))
    includes = [f"-I{path}" for path in (ROOT / "tests" / "cpp", ROOT / "cpp" / "include", directory / "include")]
    program, source = directory / "mutant", ROOT / "tests" / "cuda" / f"{KERNELS[name]}.cpp"
    subprocess.run(["c++", "-std=c++20", "-O1", "-w", *includes, str(source), "-o", str(program)], check=True)
    try:
        return subprocess.run([str(program)], capture_output=True, check=False, timeout=300).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> int:
    unnoticed = 0
    for name, number, line in mutants():
        with tempfile.TemporaryDirectory() as directory:
            found = noticed(name, number, line, Path(directory))
        unnoticed += not found
        print(f"{name}.hpp:{number + 1}: {'noticed' if found else 'NOT NOTICED'}", flush=True)
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
