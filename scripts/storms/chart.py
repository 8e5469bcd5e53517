"""Arrivals against capacity, as an SVG that any browser shows. Pure: an outcome in, text out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

from scripts.storms.storm import Blow, Look, Outcome

BIN = 0.1  # seconds

_WIDTH, _HEIGHT = 960, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 92, 56
_RECEIVED, _REFUSED, _CAPACITY, _AWAY = "#2f7ed8", "#e08214", "#b2182b", "#e6e6e6"
_INK, _GRID = "#333333", "#d9d9d9"
_TICKS = 8

_Scale = tuple[float, float]  # the value at the end of an axis, and the pixels that it has


def draw(outcome: Outcome) -> str:
    """The picture of one storm."""
    returned = outcome.returned
    end = max([outcome.ready, outcome.last_return, *returned.refusals]) + 5 * BIN
    received = per_bin(returned.returns, end)
    refused = per_bin(returned.refusals, end)
    capacity = list(_steps(outcome, end))
    highest = max(
        [a + b for a, b in zip(received, refused, strict=True)] + [rate for _, rate in capacity]
    )
    x: _Scale = (end, _WIDTH - _LEFT - _RIGHT)
    y: _Scale = (_nice(highest / _TICKS) * _TICKS if highest else 1.0, _HEIGHT - _TOP - _BOTTOM)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13" '
            f'fill="{_INK}">'
        ),
        f"<title>{escape(_title(outcome))}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 28, _title(outcome), size=17),
        *_legend(refused, capacity),
        _band(outcome, x, y),
        *_grid(x, y),
        *_bars(received, [0] * len(received), _RECEIVED, x, y),
        *_bars(refused, received, _REFUSED, x, y),
        _line(capacity, end, x, y),
        "</svg>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def per_bin(moments: Iterable[float], end: float) -> list[int]:
    """How many moments fall into each tenth of a second from 0 to `end`."""
    counts = [0] * (math.ceil(end / BIN) + 1)
    for moment in moments:
        counts[max(0, int(moment / BIN))] += 1
    return counts


def _steps(outcome: Outcome, end: float) -> Iterator[tuple[float, float]]:
    """From when on so many clients could be received in each bin."""
    came = outcome.returned
    resumes = came.resumed > came.recovered + came.unrecovered

    def rate(look: Look) -> float:
        return (look.resumes if resumes else look.connects) * BIN

    return ((look.at, rate(look)) for look in outcome.looks if look.at <= end)


def _title(outcome: Outcome) -> str:
    storm = outcome.storm
    how = "killed (kill -9)" if storm.blow is Blow.KILL else "stopped (SIGTERM)"
    return f"{storm.clients:,} clients come back to a server that was {how} and started again"


def _nice(step: float) -> float:
    """The least of 1, 2, 5, 10, … that isn't less."""
    power = 10.0 ** math.floor(math.log10(max(step, 1.0)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)


def _at_x(value: float, scale: _Scale) -> float:
    return _LEFT + min(value / scale[0], 1.0) * scale[1]


def _at_y(value: float, scale: _Scale) -> float:
    return _TOP + scale[1] - min(value / scale[0], 1.0) * scale[1]


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'
    )


def _legend(refused: Sequence[int], capacity: Sequence[object]) -> Iterator[str]:
    entries = [(_RECEIVED, "received"), (_AWAY, "the server is away")]
    if any(refused):
        entries.insert(1, (_REFUSED, "sent away, with a moment to come back"))
    if capacity:
        entries.append((_CAPACITY, "capacity that the server measured"))
    x = float(_LEFT)
    for colour, name in entries:
        yield _rect(x, 48, 14, 14, colour)
        yield _text(x + 20, 60, name)
        x += 44 + 7.2 * len(name)


def _band(outcome: Outcome, x: _Scale, y: _Scale) -> str:
    left, right = _at_x(outcome.ended, x), _at_x(outcome.ready, x)
    return _rect(left, _TOP, right - left, y[1], _AWAY)


def _grid(x: _Scale, y: _Scale) -> Iterator[str]:
    left, right, bottom = _LEFT, _LEFT + x[1], _TOP + y[1]
    for number in range(_TICKS + 1):
        value = y[0] * number / _TICKS
        height = _at_y(value, y)
        yield f'<path d="M{left} {height:.1f}H{right:.1f}" stroke="{_GRID}"/>'
        yield _text(left - 8, height + 4, f"{value:,.0f}", anchor="end")
    step = _nice(x[0] / 12)
    for number in range(int(x[0] / step) + 1):
        place = _at_x(number * step, x)
        yield f'<path d="M{place:.1f} {bottom:.1f}v5" stroke="{_INK}"/>'
        yield _text(place, bottom + 20, f"{number * step:g}", anchor="middle")
    yield f'<path d="M{left} {bottom:.1f}H{right:.1f}" stroke="{_INK}"/>'
    yield _text((left + right) / 2, _HEIGHT - 12, "seconds since the signal", anchor="middle")
    yield _text(left - 48, _TOP - 12, f"clients per {BIN * 1000:.0f} ms")


def _bars(
    counts: Sequence[int], below: Sequence[int], fill: str, x: _Scale, y: _Scale
) -> Iterator[str]:
    width = max(BIN / x[0] * x[1] - 0.4, 0.6)
    for number, (count, under) in enumerate(zip(counts, below, strict=True)):
        if count:
            top = _at_y(under + count, y)
            yield _rect(_at_x(number * BIN, x), top, width, _at_y(under, y) - top, fill)


def _line(steps: Sequence[tuple[float, float]], end: float, x: _Scale, y: _Scale) -> str:
    if not steps:
        return ""
    path = f"M{_at_x(steps[0][0], x):.1f} {_at_y(steps[0][1], y):.1f}"
    for _, (at, rate) in pairwise(steps):
        path += f"H{_at_x(at, x):.1f}V{_at_y(rate, y):.1f}"
    path += f"H{_at_x(end, x):.1f}"
    return f'<path d="{path}" fill="none" stroke="{_CAPACITY}" stroke-width="2"/>'
