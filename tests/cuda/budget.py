"""What every kernel instance costs on every architecture, held against cuda/budget.json: registers, shared memory, spills.

python -m tests.cuda.budget            compiles all kernels and compares
python -m tests.cuda.budget --write    and writes the new budget
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cuda" / "budget.json"
INCLUDES = [f"-I{ROOT / 'cuda' / 'include'}", f"-I{ROOT / 'cpp' / 'include'}"]
ARCHITECTURES = ("80", "90a")
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings"]
PTXAS = "-Xptxas=-v,-warn-spills,-warn-lmem-usage"

Budget = dict[str, Any]


def run(command: list[str]) -> str:
    """What a command says on both channels; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def short(name: str) -> str:
    """A kernel's name without namespaces."""
    return re.sub(r"recollect::(cuda::)?", "", name).replace(" >", ">")


def kernels(compiler: str) -> Budget:
    """Every instance with its threads and the shared memory it is launched with."""
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "print_kernels")
        run(
            [
                compiler,
                "-std=c++20",
                "-Wno-unknown-pragmas",
                *INCLUDES,
                str(ROOT / "tests/cuda/print_kernels.cpp"),
                "-o",
                program,
            ]
        )
        rows = [line.split("\t") for line in run([program]).splitlines()]
    return {short(name): {"threads": int(threads), "shared": int(shared)} for name, threads, shared in rows}


def compiled(nvcc: str) -> dict[str, dict[str, dict[str, int]]]:
    """kernel -> architecture -> registers, stack, spills, as ptxas tells them."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    targets = [flag for a in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.S,
    )
    with tempfile.TemporaryDirectory() as directory:
        for source in sorted((ROOT / "cuda" / "src").glob("*.cu")):
            kept = Path(directory) / source.stem
            kept.mkdir()
            keep = ["--keep", "--keep-dir", str(kept)]
            output = str(kept / "kernels.o")
            said = run([nvcc, *FLAGS, PTXAS, *targets, *INCLUDES, *keep, "-c", str(source), "-o", output])
            # Host constants that device code cannot reach, an array of them say, become a trap without a word.
            if any(re.search(r"^\s*trap;", ptx.read_text(), re.M) for ptx in kept.glob("*.ptx")):
                raise RuntimeError(f"{source.name}: a kernel traps; device code uses what only the host has")
            if "serialized" in said:
                raise RuntimeError(f"{source.name}: ptxas does one product of a warpgroup after the other\n{said}")
            for symbol, architecture, stack, stores, loads, registers in entry.findall(said):
                match = re.search(r"run<(.*)>\(", run(["c++filt", symbol]))
                name = short(match.group(1).strip()) if match else symbol
                cost = {"registers": int(registers), "stack": int(stack), "spills": int(stores) + int(loads)}
                found.setdefault(name, {})[f"sm_{architecture}"] = cost
    return found


def measure(nvcc: str = "nvcc", compiler: str = "c++") -> Budget:
    """The budget as it is now."""
    instances, costs = kernels(compiler), compiled(nvcc)
    if instances.keys() != costs.keys():
        raise RuntimeError(
            f"kernels that are chosen and kernels that are compiled differ: {instances.keys() ^ costs.keys()}"
        )
    version = re.search(r"release ([\d.]+)", run([nvcc, "--version"]))
    return {
        "nvcc": version.group(1) if version else "unknown",
        "kernels": {name: instances[name] | costs[name] for name in sorted(instances)},
    }


def excesses(now: Budget, budget: Budget) -> list[str]:
    """What is over budget. Another compiler has other registers; spills and shared memory it must not have more of."""
    same = now["nvcc"] == budget["nvcc"]
    names = now["kernels"].keys() ^ budget["kernels"].keys()
    over = [f"{name} is only in {'the build' if name in now['kernels'] else 'the budget'}" for name in sorted(names)]
    for name in sorted(now["kernels"].keys() & budget["kernels"].keys()):
        new, old = now["kernels"][name], budget["kernels"][name]
        if new["shared"] > old["shared"]:
            over.append(f"{name}: {new['shared']} bytes of shared memory; budget {old['shared']}")
        for architecture in (a for a in new if a.startswith("sm_")):
            for what, number in new[architecture].items():
                allowed = old.get(architecture, {}).get(what, 0)
                if number > allowed and (same or what != "registers"):
                    over.append(f"{name}, {architecture}: {what} {number}; budget {allowed}")
    return over


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what kernels cost with cuda/budget.json.")
    parser.add_argument("--write", action="store_true", help="write the new budget")
    arguments = parser.parse_args()
    now = measure()
    if arguments.write:
        FILE.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    over = excesses(now, json.loads(FILE.read_text()))
    print("\n".join(over) if over else f"{len(now['kernels'])} kernels within budget")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
