"""Codes as SDKs know them, and close reasons that always fit."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol import codes
from gateway.protocol.codes import Disconnect, ErrorCode, Unsubscribe, close_reason
from tests.support.fuzzing import REPEATABLE

# The public protocol's tables, written down once more from its documentation.
PUBLIC_ERRORS = {
    100: ("internal server error", True),
    101: ("unauthorized", False),
    102: ("unknown channel", False),
    103: ("permission denied", False),
    104: ("method not found", False),
    105: ("already subscribed", False),
    106: ("limit exceeded", False),
    107: ("bad request", False),
    108: ("not available", False),
    109: ("token expired", False),
    110: ("expired", False),
    111: ("too many requests", True),
    112: ("unrecoverable position", False),
    113: ("concurrent pagination", True),
}
PUBLIC_DISCONNECTS = {
    3000: "connection closed",
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3006: "subscription expired",
    3008: "slow",
    3009: "write error",
    3010: "insufficient state",
    3011: "force reconnect",
    3012: "no pong",
    3013: "too many requests",
    3014: "state invalidated",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3503: "force disconnect",
    3504: "connection limit",
    3505: "channel limit",
    3506: "inappropriate protocol",
    3507: "permission denied",
    3508: "not available",
    3509: "too many errors",
}


def test_error_codes_are_the_public_ones() -> None:
    assert {error.code: (error.message, error.temporary) for error in codes.ERRORS} == PUBLIC_ERRORS


def test_disconnect_codes_are_the_public_ones() -> None:
    assert {one.code: one.reason for one in codes.DISCONNECTS} == PUBLIC_DISCONNECTS


def test_unsubscribe_codes_are_the_public_ones() -> None:
    assert [one.code for one in codes.UNSUBSCRIBES] == [0, 1, 2000, 2500, 2501, 2502]


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (ErrorCode, codes.ERRORS),
        (Unsubscribe, codes.UNSUBSCRIBES),
        (Disconnect, codes.DISCONNECTS),
    ],
)
def test_every_code_is_in_its_table(
    kind: type, table: tuple[ErrorCode | Unsubscribe | Disconnect, ...]
) -> None:
    named = [value for value in vars(codes).values() if isinstance(value, kind)]

    assert list(table) == named
    assert len({value.code for value in table}) == len(table)
    assert all(value.when for value in table)


@pytest.mark.parametrize(
    ("code", "reconnect"),
    [
        (3000, True),
        (3499, True),
        (3500, False),
        (3999, False),
        (4000, True),
        (4499, True),
        (4500, False),
        (4999, False),
        (5000, True),
    ],
)
def test_the_range_of_a_code_says_whether_to_come_back(code: int, reconnect: bool) -> None:
    assert Disconnect(code, "x", "").reconnect is reconnect


def test_a_close_reason_is_json_that_sdks_obey() -> None:
    assert json.loads(close_reason("stale", reconnect=False)) == {
        "reason": "stale",
        "reconnect": False,
    }
    assert json.loads(close_reason("shutdown", reconnect=True, retry_ms=4180)) == {
        "reason": "shutdown",
        "reconnect": True,
        "retry": 4180,
    }


@pytest.mark.parametrize("disconnect", codes.DISCONNECTS, ids=lambda one: str(one.code))
def test_every_reason_of_ours_fits_whole(disconnect: Disconnect) -> None:
    reason = close_reason(disconnect.reason, reconnect=disconnect.reconnect, retry_ms=10_000_000)

    assert len(reason) <= 123
    assert json.loads(reason)["reason"] == disconnect.reason


@given(st.text(max_size=200), st.booleans(), st.none() | st.integers(0, 2**40))
@example("é" * 200, True, 2**40)
@example('"' * 200, False, None)
@example("\U0001f600" * 100, True, 5)
@settings(REPEATABLE, max_examples=300)
def test_any_reason_is_cut_until_it_fits(text: str, reconnect: bool, retry_ms: int | None) -> None:
    reason = close_reason(text, reconnect=reconnect, retry_ms=retry_ms)

    assert 0 < len(reason) <= 123
    read = json.loads(reason)
    assert text.startswith(read["reason"])
    assert read["reconnect"] is reconnect
    assert read.get("retry") == retry_ms
    if len(text.encode()) < 50 and text.isalnum():
        assert read["reason"] == text


def test_a_long_reason_loses_no_more_than_it_must() -> None:
    for reason, longest in (("x" * 200, 123), ("é" * 200, 122), ("\U0001f600" * 60, 120)):
        assert len(close_reason(reason, reconnect=True)) >= longest
