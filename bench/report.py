"""Rows of the table and records of the JSON file, from the raw times."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .ceilings import NAMES, UNITS

_COLUMNS = (
    ("case", 41),
    ("peer", 13),
    ("peer ms min/med", 19),
    ("ours ms min/med", 19),
    ("ratio", 8),
    ("ours", 14),
    ("of limit", 9),
    ("target", 24),
    ("verdict", 0),
)


def line(cells) -> str:
    return " ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def header() -> str:
    names = line([name for name, _ in _COLUMNS])
    return f"{names}\n{'-' * (len(names) + 8)}"


def _milliseconds(times: list[float]) -> str:
    if not times:
        return "-"
    best, middle = min(times) * 1e3, median(times) * 1e3
    digits = 2 if best >= 10 else 4 if best >= 0.01 else 5
    return f"{best:.{digits}f}/{middle:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One case against one peer. Ratio: median of peer/ours over neighbouring pairs, above one is faster."""

    case: object
    peer: str
    peer_s: list[float]
    ours_s: list[float]
    rate: float | None = None  # ours, of the whole case: GFLOP/s or GB/s
    of_limit: float | None = None
    judges_limit: bool = False  # the limit is a matter of the case, so only its first row judges it
    note: str = ""  # why there is no peer
    peer_error: float | None = None

    @property
    def ratio(self) -> float | None:
        pairs = list(zip(self.peer_s, self.ours_s, strict=False))
        return median(peer / ours for peer, ours in pairs) if pairs else None

    @property
    def targets(self) -> dict[str, float]:
        wanted = {"ratio": self.case.targets.get(self.peer), "limit": self.case.of_limit if self.judges_limit else None}
        return {name: target for name, target in wanted.items() if target is not None}

    def missed(self) -> list[str] | None:
        """Names of the targets that were missed; None where there was nothing to judge."""
        values = {"ratio": self.ratio, "limit": self.of_limit}
        judged = {name: values[name] >= target for name, target in self.targets.items() if values[name] is not None}
        return [name for name, met in judged.items() if not met] if judged else None

    def text(self) -> str:
        missed, units = self.missed(), {"ratio": "x", "limit": " of limit"}
        verdict = "" if missed is None else "missed: " + ", ".join(missed) if missed else "met"
        return line(
            [
                self.case.name,
                self.peer,
                self.note or _milliseconds(self.peer_s),
                _milliseconds(self.ours_s),
                "-" if self.ratio is None else f"{self.ratio:.2f}x",
                "-" if self.rate is None else f"{self.rate:.1f} {UNITS[self.case.limit]}",
                "-" if self.of_limit is None else f"{self.of_limit:.2f}",
                ", ".join(f">={target:.3g}{units[name]}" for name, target in self.targets.items()) or "-",
                verdict,
            ]
        )

    def record(self) -> dict:
        return {
            "peer": self.peer,
            "note": self.note,
            "peer_error": self.peer_error,
            "peer_s": self.peer_s,
            "ours_s": self.ours_s,
            "ratio": self.ratio,
            "ours_rate": self.rate,
            "of_limit": self.of_limit,
            "targets": self.targets,
            "missed": self.missed(),
        }


def case_rows(case, pairs, notes: dict[str, str], peer_errors: dict[str, float]) -> list[Row]:
    """Best against best for the limit: a neighbour that slows both down for a while is in neither."""
    ours = [seconds for times in pairs.ours.values() for seconds in times]
    rate = case.work / min(ours) * 1e-9 if ours and case.limit else None
    of_limit = rate / max(pairs.limit) if rate and pairs.limit else None
    return [
        Row(
            case,
            name,
            pairs.peer[name],
            pairs.ours[name],
            rate,
            of_limit,
            judges_limit=position == 0,
            note=notes.get(name, ""),
            peer_error=peer_errors.get(name),
        )
        for position, name in enumerate(case.peers)
    ]


def case_record(
    case, rows: list[Row], status: str, error: float | None, bound: float | None, limits: list[float]
) -> dict:
    return {
        "case": case.name,
        "op": case.op,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "steps": case.steps,
        "beta_scale": case.beta_scale,
        "flops": case.flops,
        "bytes": case.bytes,
        "limit": case.limit,
        "limit_unit": UNITS.get(case.limit),
        "limit_samples": limits,
        "status": status,
        "error": error,
        "error_bound": bound,
        "rows": [row.record() for row in rows],
    }


def ceilings_text(overview: dict[str, dict[int, float]]) -> str:
    lines = []
    for kind, by_threads in overview.items():
        parts = [f"{rate:.0f} {UNITS[kind]} on {t} thread{'s' if t != 1 else ''}" for t, rate in by_threads.items()]
        lines.append(f"{NAMES[kind]}: {', '.join(parts)}")
    return "\n".join(lines)


def summary(rows: list[Row], broken: list[str]) -> str:
    """What a reader must not miss: wrong results, missed targets, and where somebody else is faster."""
    judged = [row for row in rows if row.missed() is not None]
    missed = [row for row in judged if row.missed()]
    faster = [row for row in rows if row.ratio is not None and row.ratio < 1 and not row.peer.startswith("ours")]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} rows with a target met it."]
    lines += [f"  missed {' and '.join(row.missed())}: {row.case.name} against {row.peer}" for row in missed]
    if faster:
        lines.append("Faster than ours:")
        lines += [f"  {row.peer} in {row.case.name}: we take {1 / row.ratio:.2f}x its time" for row in faster]
    lines += [f"WRONG: {sentence}" for sentence in broken]
    return "\n".join(lines)
