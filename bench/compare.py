"""Two JSON files of bench.run side by side: python -m bench.compare before.json after.json

Times of two runs are not compared, because machines and neighbours differ: what is compared is the ratio
to the peer and the fraction of the limit, each measured within its own run. The brackets hold the
quartiles of the paired ratios; where they overlap there is no difference to speak of.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import median, quantiles

_ROW = "{:<41} {:<13} {:<24} {:<24} {:>7} {:>15}  {}"


def load(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is not a result of bench.run: {error}")


def rows_of(content: dict) -> dict[tuple[str, str], dict]:
    return {(result["case"], row["peer"]): row for result in content["results"] for row in result["rows"]}


def ratios(row: dict | None) -> list[float]:
    return [peer / ours for peer, ours in zip(row["peer_s"], row["ours_s"], strict=False)] if row else []


def spread(values: list[float]) -> tuple[float, float]:
    """The quartiles; of fewer than two values, the value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def cell(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = spread(values)
    return f"{median(values):.2f}x [{low:.2f}, {high:.2f}]"


def fraction(row: dict | None) -> str:
    return f"{row['of_limit']:.2f}" if row and row["of_limit"] is not None else "-"


def verdict(before: list[float], after: list[float]) -> str:
    if not before or not after:
        return ""
    (low_before, high_before), (low_after, high_after) = spread(before), spread(after)
    return "better" if low_after > high_before else "worse" if high_after < low_before else "same"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.partition(":")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", metavar="REGEX", default="", help="only cases whose name matches")
    options = parser.parse_args(argv)
    before, after = load(options.before), load(options.after)
    for label, content in (("before", before), ("after", after)):
        machine = content["machine"]
        print(f"{label}: commit {content['commit']}, {machine['cpu']}, {content['threads']['count']} threads")
    if before["machine"]["cpu"] != after["machine"]["cpu"] or before["threads"]["count"] != after["threads"]["count"]:
        print("note: machines or thread counts differ; read the fractions of the limit rather than the ratios")

    print("\n" + _ROW.format("case", "peer", "ratio before", "ratio after", "change", "of limit", ""))
    old, new = rows_of(before), rows_of(after)
    for key in [*old, *(key for key in new if key not in old)]:
        first, second = old.get(key), new.get(key)
        if not re.search(options.only, key[0]):
            continue
        a, b = ratios(first), ratios(second)
        change = f"{median(b) / median(a):.2f}x" if a and b else "-"
        limits = " -> ".join(dict.fromkeys([fraction(first), fraction(second)]))  # once where they are the same
        print(_ROW.format(*key, cell(a), cell(b), change, limits, verdict(a, b)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
