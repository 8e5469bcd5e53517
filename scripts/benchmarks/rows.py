"""Rows of the result: a figure, what it is compared with, what it is meant to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Unit(Enum):
    """How a value in seconds, bytes or events per second is printed: suffix, factor, decimals."""

    MICROSECONDS = ("µs", 1e6, 2)
    MILLISECONDS = ("ms", 1e3, 2)
    SECONDS = ("s", 1.0, 2)
    BYTES = ("B", 1.0, 0)
    PER_SECOND = ("/s", 1.0, 0)
    COUNT = ("", 1.0, 0)

    def text(self, value: float) -> str:
        """The value as people read it."""
        suffix, factor, decimals = self.value
        return f"{value * factor:,.{decimals}f} {suffix}".rstrip()


class Verdict(Enum):
    """What a row says about its aim."""

    MET = "met"
    MISSED = "MISSED"
    NO_AIM = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """A limit for a row's ratio or for its value."""

    limit: float
    of_ratio: bool = False
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Values are in seconds, bytes or events per second.

    `ratio` is the median of the ratios of neighbouring measurements, so it need not be the quotient
    of the two medians beside it. `server_busy` and `load_busy` are shares of one core,
    `others_busy` is the share of the machine that other processes had meanwhile. `samples` holds
    what the medians were taken from.
    """

    name: str
    unit: Unit
    value: float
    baseline: float | None = None
    baseline_name: str = ""
    baseline_unit: Unit | None = None
    ratio: float | None = None
    aim: Aim | None = None
    server_busy: float | None = None
    load_busy: float | None = None
    others_busy: float | None = None
    note: str = ""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether the aim is met, if there is one."""
        if self.aim is None:
            return Verdict.NO_AIM
        figure = self.ratio if self.aim.of_ratio else self.value
        if figure is None:
            raise AssertionError(f"{self.name}: an aim for a ratio that was not measured")
        met = figure >= self.aim.limit if self.aim.at_least else figure <= self.aim.limit
        return Verdict.MET if met else Verdict.MISSED

    @property
    def measured_text(self) -> str:
        """The value with its unit."""
        return self.unit.text(self.value)

    @property
    def baseline_text(self) -> str:
        """The baseline with its unit, empty without one."""
        if self.baseline is None:
            return ""
        return (self.baseline_unit or self.unit).text(self.baseline)

    @property
    def aim_text(self) -> str:
        """The limit as a comparison, empty without one."""
        if self.aim is None:
            return ""
        sign = "≥" if self.aim.at_least else "≤"
        if self.aim.of_ratio:
            return f"{sign} {self.aim.limit:.2f}x"
        return f"{sign} {self.unit.text(self.aim.limit)}"

    def as_json(self) -> dict[str, Any]:
        """Everything, in base units."""
        return {
            "row": self.name,
            "unit": self.unit.name.lower(),
            "value": self.value,
            "baseline": self.baseline,
            "baseline_name": self.baseline_name,
            "ratio": self.ratio,
            "aim": self.aim_text,
            "verdict": self.verdict.value.lower(),
            "server_busy": self.server_busy,
            "load_busy": self.load_busy,
            "others_busy": self.others_busy,
            "note": self.note,
            "samples": {name: list(values) for name, values in self.samples.items()},
        }
