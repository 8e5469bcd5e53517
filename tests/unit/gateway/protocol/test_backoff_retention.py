"""From a client's schedule to its session's retention: worked examples, and absurd declarations."""

import json
import math
import random
import subprocess
from itertools import pairwise
from typing import Any, Final

import centrifuge.utils
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import session_frames
from gateway.protocol.backoff import (
    ATTEMPTS_SUMMED,
    CENTRIFUGE_DART,
    CENTRIFUGE_GO,
    CENTRIFUGE_JAVA,
    CENTRIFUGE_JS,
    CENTRIFUGE_PYTHON,
    CENTRIFUGE_SWIFT,
    Backoff,
    DeclaredBackoff,
    RetentionBounds,
    TabledBackoff,
    needed_retention,
    retention,
)
from gateway.protocol.client_policy import DEFAULT_BACKOFF, SessionPolicy
from gateway.protocol.session_frames import BackoffDeclaration, Open
from tests.support.fuzzing import REPEATABLE
from tests.support.tools import SDK_FOLDER, node

BOUNDS: Final = RetentionBounds(floor=10.0, ceiling=300.0, slack=2.0)
DETECTION: Final = 35.0  # a ping that doesn't come in 25 s, and 10 s of patience


def longest_delays(backoff: Backoff, attempts: int) -> list[float]:
    return [backoff.longest_delay(attempt) for attempt in range(attempts)]


# --- worked examples ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "delays", "five_attempts"),
    [
        # 18 s of delays and five times 5 s, as in PROTOCOL.md B.3.
        (CENTRIFUGE_JS, [1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0, 20.0], 43.0),
        # 3.6 s and five times 5 s
        (CENTRIFUGE_PYTHON, [0.2, 0.3, 0.5, 0.9, 1.7, 3.3, 6.5, 12.9, 20.0, 20.0], 28.6),
        # 12.4 s and five times 1 s
        (CENTRIFUGE_GO, [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0], 17.4),
        # 18 s and five times 10 s
        (CENTRIFUGE_DART, [1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0, 20.0], 68.0),
        (CENTRIFUGE_SWIFT, [1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0, 20.0], 43.0),
        (CENTRIFUGE_JAVA, [1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0, 20.0], 68.0),
    ],
    ids=["js", "python", "go", "dart", "swift", "java"],
)
def test_a_stock_schedule(
    backoff: TabledBackoff, delays: list[float], five_attempts: float
) -> None:
    assert longest_delays(backoff, len(delays)) == delays
    assert needed_retention(backoff, 0.0, 0.0) == pytest.approx(five_attempts)
    assert retention(backoff, DETECTION, BOUNDS) == pytest.approx(35.0 + five_attempts + 2.0)


def test_the_schedule_of_our_own_clients() -> None:
    # 0.5 + 1 + 2 + 4 + 8 + 16 + 20 + 20 = 71.5 s of delays, and eight times 5 s.
    assert longest_delays(DEFAULT_BACKOFF, 8) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    assert needed_retention(DEFAULT_BACKOFF, 0.0, 0.0) == pytest.approx(111.5)
    assert retention(DEFAULT_BACKOFF, DETECTION, BOUNDS) == pytest.approx(148.5)


def test_what_a_client_leaves_out_of_its_declaration_is_what_our_own_declare() -> None:
    assert SessionPolicy(random.random).declaration() == BackoffDeclaration()
    assert BackoffDeclaration().in_seconds() == DEFAULT_BACKOFF


def test_the_installed_python_sdk_waits_as_its_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centrifuge.utils.random, "uniform", lambda low, high: high)

    delays = [centrifuge.utils._backoff(step, 0.1, 20.0) for step in range(12)]

    assert delays == pytest.approx(longest_delays(CENTRIFUGE_PYTHON, 12))


def test_the_installed_javascript_sdk_waits_as_its_table_says() -> None:
    script = """
        import { Centrifuge } from "centrifuge";
        Math.random = () => 1 - Number.EPSILON;
        const client = new Centrifuge("ws://127.0.0.1:1/");
        const delays = Array.from({ length: 12 }, () => client._getReconnectDelay() / 1000);
        console.log(JSON.stringify(delays));
    """
    command = [node(), "--input-type=module", "--eval", script]

    ran = subprocess.run(command, cwd=SDK_FOLDER, capture_output=True, check=True, timeout=60)

    assert json.loads(ran.stdout) == longest_delays(CENTRIFUGE_JS, 12)


# --- schedules by formula -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (DeclaredBackoff(1.0, 10.0, 3.0, "full"), [1.0, 3.0, 9.0, 10.0, 10.0]),
        (DeclaredBackoff(1.0, 10.0, 3.0, "none"), [1.0, 3.0, 9.0, 10.0, 10.0]),
        (DeclaredBackoff(1.0, 10.0, 3.0, 0.5), [1.5, 4.5, 13.5, 15.0, 15.0]),
        (DeclaredBackoff(2.0, 10.0, 1.0), [2.0, 2.0, 2.0, 2.0, 2.0]),
        (DeclaredBackoff(0.0, 10.0), [0.0, 0.0, 0.0, 0.0, 0.0]),
        (DeclaredBackoff(5.0, 1.0), [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
    ids=["full", "none", "a fraction", "no growth", "no delay", "more than the most"],
)
def test_a_declared_schedule(backoff: DeclaredBackoff, delays: list[float]) -> None:
    assert longest_delays(backoff, 5) == delays


@pytest.mark.parametrize("attempt", [100, 10_000, 2**31])
def test_a_delay_stays_within_its_limit_for_any_attempt(attempt: int) -> None:
    assert DeclaredBackoff(0.5, 20.0).longest_delay(attempt) == 20.0
    assert DeclaredBackoff(0.0, 20.0).longest_delay(attempt) == 0.0
    assert CENTRIFUGE_JS.longest_delay(attempt) == 20.0


def test_no_attempt_needs_nothing_but_detection_and_slack() -> None:
    assert needed_retention(DeclaredBackoff(1.0, 10.0, attempts=0), 35.0, 2.0) == 37.0


def test_attempts_beyond_those_added_up_count_in_full() -> None:
    constant = DeclaredBackoff(0.25, 0.25, 1.0, "none", ATTEMPTS_SUMMED + 36, timeout=0.25)

    assert needed_retention(constant, 0.0, 0.0) == pytest.approx((ATTEMPTS_SUMMED + 36) * 0.5)


def test_attempts_beyond_those_added_up_are_never_too_short() -> None:
    growing = DeclaredBackoff(0.01, 1000.0, 1.05, "none", 100, timeout=0.0)
    exact = sum(longest_delays(growing, 100))

    assert exact < needed_retention(growing, 0.0, 0.0) < 36 * growing.longest_delay(99) + exact


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (DeclaredBackoff(0.0, 0.0, attempts=0), 10.0),
        (DeclaredBackoff(1.0, 1.0, 1.0, "none", 5, 3.0), 22.0),
        (DeclaredBackoff(60.0, 600.0, attempts=30), 300.0),
    ],
    ids=["floor", "between", "ceiling"],
)
def test_retention_is_between_floor_and_ceiling(backoff: DeclaredBackoff, expected: float) -> None:
    assert retention(backoff, 0.0, BOUNDS) == expected


@pytest.mark.parametrize(
    ("pressure", "expected"),
    [(-1.0, 22.0), (0.0, 22.0), (0.25, 19.0), (0.5, 16.0), (1.0, 10.0), (2.0, 10.0)],
)
def test_pressure_takes_away_what_is_above_the_floor(pressure: float, expected: float) -> None:
    backoff = DeclaredBackoff(1.0, 1.0, 1.0, "none", 5, 3.0)

    assert retention(backoff, 0.0, BOUNDS, pressure) == pytest.approx(expected)


@pytest.mark.parametrize("floor_is_ceiling", [10.0, 60.0])
def test_floor_and_ceiling_may_be_the_same(floor_is_ceiling: float) -> None:
    bounds = RetentionBounds(floor_is_ceiling, floor_is_ceiling)

    assert retention(DEFAULT_BACKOFF, DETECTION, bounds, 0.5) == floor_is_ceiling


# --- absurd declarations --------------------------------------------------------------------------

any_number = st.floats() | st.sampled_from([1e308, -1e308, 0.0, -0.0, 5e-324])


@given(
    any_number,
    any_number,
    any_number,
    any_number | st.sampled_from(["full", "none"]),
    st.integers() | st.sampled_from([2**31, 10**400]),
    any_number,
)
@example(1.0, 1.0, 1e308, "full", 5, 5.0)
@example(1e308, 1e308, 1e308, 1e308, 2**31, 1e308)
@example(60.0, 1.0, 2.0, "none", 5, 5.0)
@example(math.nan, math.nan, math.nan, math.nan, -1, math.nan)
@example(math.inf, math.inf, math.inf, math.inf, 5, math.inf)
@example(-1.0, -1.0, -1.0, -1.0, -1, -1.0)
@REPEATABLE
def test_whatever_is_declared_is_brought_within_bounds(
    minimum: float, maximum: float, factor: float, jitter: Any, attempts: int, timeout: float
) -> None:
    backoff = DeclaredBackoff(minimum, maximum, factor, jitter, attempts, timeout)

    delays = longest_delays(backoff, 100)

    assert all(math.isfinite(delay) and delay >= 0.0 for delay in delays)
    assert all(before <= after for before, after in pairwise(delays))
    assert 0.0 <= backoff.timeout < math.inf
    assert backoff.attempts >= 0
    assert BOUNDS.floor <= retention(backoff, DETECTION, BOUNDS) <= BOUNDS.ceiling


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ({"factor": 1e308}, 35.0 + 0.5 + 7 * 20.0 + 8 * 5.0 + 2.0),
        ({"max": 1e308}, 35.0 + 0.5 * 255 + 8 * 5.0 + 2.0),
        ({"min": 1e308, "max": 1e308}, 300.0),
        ({"timeout": 1e308}, 300.0),
        ({"attempts": 2**31}, 300.0),
        ({"attempts": 10**30}, 300.0),
        ({"min": 60_000, "max": 1000}, 35.0 + 8 * 6.0 + 2.0),
        ({"min": -1, "max": -1, "factor": -2, "timeout": -1}, 37.0),
        ({"jitter": 1e9, "attempts": 1}, 35.0 + 2 * 0.5 + 5.0 + 2.0),
        ({"jitter": -0.5, "attempts": 1}, 35.0 + 0.5 + 5.0 + 2.0),
        ({"attempts": -7}, 37.0),
    ],
    ids=json.dumps,
)
def test_an_absurd_declaration_on_the_wire(declaration: dict[str, Any], expected: float) -> None:
    text = json.dumps({"session": {"open": {"backoff": declaration}}})
    frame = session_frames.decode_client_frame(text)
    assert isinstance(frame, Open)

    assert retention(frame.backoff.in_seconds(), DETECTION, BOUNDS) == pytest.approx(expected)


@pytest.mark.parametrize("pressure", [math.nan, math.inf, -math.inf])
def test_no_pressure_leaves_the_bounds(pressure: float) -> None:
    granted = retention(DEFAULT_BACKOFF, DETECTION, BOUNDS, pressure)

    assert BOUNDS.floor <= granted <= BOUNDS.ceiling
