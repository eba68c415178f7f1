"""Checks, then times, every case of the registry: python -m bench.run --help"""

from __future__ import annotations

import argparse
import json
import operator
import os
import re
import sys
import tempfile
from pathlib import Path

from . import environment, report
from .ceilings import Ceilings
from .peers import PEERS, as_arrays, pin_threads
from .registry import CASES, OPS
from .timing import interleave

_QUICK_FLOPS = 2e10  # --quick leaves out what takes longer than a blink


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.partition(":")[0])
    parser.add_argument("--only", metavar="REGEX", default="", help="only cases whose name matches")
    parser.add_argument("--repeat", metavar="N", type=int, default=30, help="rounds per case (default 30)")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=4.0, help="time for the rounds of a case (default 4)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=environment.usable_cores(), help="for ours and for every peer"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write everything that was measured, raw times included"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, and no case above 20 GFLOP")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    arguments = parser.parse_args(argv)
    try:
        wanted = re.compile(arguments.only)
    except re.error as error:
        parser.error(f"--only is not a regular expression: {error}")
    arguments.cases = [case for case in CASES if wanted.search(case.name)]
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 0.5)
        arguments.cases = [case for case in arguments.cases if case.flops <= _QUICK_FLOPS]
    if not arguments.cases:
        parser.error(f"no case matches {arguments.only!r}; --list shows them")
    if arguments.repeat < 1 or arguments.threads < 1:
        parser.error("--repeat and --threads are at least 1")
    # Said now and not after an hour of measuring.
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.parent}")
    return arguments


def list_cases(cases) -> None:
    for case in cases:
        targets = [f"{peer} >={ratio:.3g}x" for peer, ratio in case.targets.items()]
        targets += [f"{case.limit} >={case.of_limit:.2f}"] if case.of_limit else []
        print(f"{case.name:<40} {case.flops / 1e9:9.3f} GFLOP {case.bytes / 1e6:9.3f} MB  {', '.join(case.peers)}")
        if targets:
            print(f"{'':<40} {'; '.join(targets)}")


def has_all(rc, names) -> bool:
    """Whether the library has these public names already: later ops may be listed before they exist."""
    try:
        for name in names:
            operator.attrgetter(name)(rc)
    except AttributeError:
        return False
    return rc is not None


def prepare_peers(case, x, truth):
    """Name -> call (None where there is none), notes for those, and the error of each result that can be compared."""
    calls, notes, errors = dict.fromkeys(case.peers), {}, {}
    for name in case.peers:
        peer = PEERS[case.op, name]
        try:
            call = peer.prepare(case, x)
            if peer.same_job:
                errors[name] = truth.error_of(as_arrays(call()))
            calls[name] = call
        except ImportError:
            notes[name] = "not installed"
        except Exception as error:  # a rival that breaks, say for want of memory, must not end a long run
            notes[name] = f"failed: {type(error).__name__}"
    return calls, notes, errors


def check_ours(case, rc, x, truth, bound):
    """-> (call or None, status, relative error). A wrong result has no speed, so it has no call either."""
    op = OPS[case.op]
    if not has_all(rc, op.needs):
        return None, "not in this library", None
    try:
        call = op.ours(rc, case, x)
        error = truth.error_of(as_arrays(call()))
    except Exception as failure:  # reported with the others at the end; the exit status tells
        return None, f"failed: {type(failure).__name__}: {failure}", None
    if error > bound:
        return None, f"wrong: relative error {error:.1e} is above {bound:.1e}", error
    return call, "right", error


def run_case(case, rc, ceilings, options):
    """-> (rows, record, a sentence if our result is wrong)"""
    x = OPS[case.op].inputs(case)
    truth = OPS[case.op].truth(case, x)
    bound = case.error_bound(truth.largest_score)
    ours, status, error = check_ours(case, rc, x, truth, bound)
    if rc is not None:
        print(
            f"{case.name}: {status}" + (f", relative error {error:.1e}, bound {bound:.1e}" if ours else ""), flush=True
        )
    if status.startswith(("wrong", "failed")):
        return [], report.case_record(case, [], status, error, bound, []), f"{case.name}: {status}"

    calls, notes, peer_errors = prepare_peers(case, x, truth)
    for name, peer_error in peer_errors.items():
        if peer_error > bound:
            print(f"{case.name}: note: {name} has a relative error of {peer_error:.1e}", flush=True)
    sample = (lambda: ceilings.sample(case.limit, case.dtype)) if ceilings and case.limit else None
    pairs = interleave(ours, calls, sample, options.repeat, options.seconds)
    rows = report.case_rows(case, pairs, notes, peer_errors)
    return rows, report.case_record(case, rows, status, error, bound, pairs.limit), None


def write_json(path: Path, content: dict) -> None:
    """Under the final name there is either the old file or all of the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1, default=str)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(argv=None) -> int:
    options = parse(argv)
    if options.list:
        list_cases(options.cases)
        return 0

    rc = environment.library()
    pinned = pin_threads(options.threads)
    if rc is not None:
        rc.set_num_threads(options.threads)
    machine, versions = environment.machine(), environment.versions()
    print(
        f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores; {options.threads} threads for everybody"
    )
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if rc is None:
        print("recollect is not installed: only peers and limits are timed")
    ceilings, overview = None, {}
    try:
        ceilings = Ceilings(options.threads)
        overview = ceilings.overview()
        print(report.ceilings_text(overview))
    except RuntimeError as error:
        print(f"limits are not measured: {error}")

    print(f"\n{report.header()}", flush=True)
    rows, records, broken = [], [], []
    for case in options.cases:
        case_rows, record, complaint = run_case(case, rc, ceilings, options)
        for row in case_rows:
            print(row.text(), flush=True)
        rows += case_rows
        records.append(record)
        broken += [complaint] if complaint else []
    print(f"\n{report.summary(rows, broken)}")

    if options.json:
        content = {
            "format": 1,
            "commit": environment.commit(),
            "machine": machine,
            "versions": versions,
            "config": environment.show_config(rc),
            "threads": {"count": options.threads, **pinned},
            "options": {
                "repeat": options.repeat,
                "seconds": options.seconds,
                "only": options.only,
                "quick": options.quick,
            },
            "ceilings": overview,
            "results": records,
        }
        write_json(options.json, content)
        print(f"written: {options.json}")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
