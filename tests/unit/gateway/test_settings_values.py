"""The text of single settings is read strictly and refused helpfully."""

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.settings_values import (
    parse_http_url,
    parse_json,
    parse_moment,
    parse_network,
    parse_origin,
    parse_regex,
    parse_seconds,
    render,
    split_list,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (25, 25.0),
        (0.5, 0.5),
        ("25", 25.0),
        (" 2.5 ", 2.5),
        ("250ms", 0.25),
        ("300s", 300.0),
        ("10m", 600.0),
        ("12h", 43200.0),
        ("7d", 604800.0),
        ("2w", 1209600.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1.5h", 5400.0),
        ("-5", -5.0),
    ],
)
def test_durations_are_numbers_or_text_with_units(written: object, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *("", "soon", "7 days", "5x", "s", "10m!", "1h,30m", "٣s", "inf", "nan", "1e999"),
        *(True, None, [], {}, 10**400, float("inf"), float("nan")),
    ],
)
def test_what_is_no_duration_is_refused_with_examples(written: object) -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        parse_seconds(written)


def test_moments_are_rfc_3339_or_unix_seconds() -> None:
    noon = datetime(2030, 1, 31, 12, tzinfo=UTC)

    assert parse_moment("2030-01-31T12:00:00Z") == noon.timestamp()
    assert parse_moment("2030-01-31T13:00:00+01:00") == noon.timestamp()
    assert parse_moment(noon) == noon.timestamp()
    assert parse_moment(noon.timestamp()) == noon.timestamp()
    assert parse_moment("1896091200") == 1896091200.0


@pytest.mark.parametrize(
    "written",
    ["", "tomorrow", "2030-01-31T12:00:00", "2030-01-31", "inf", True, None, 10**400, float("nan")],
)
def test_a_moment_without_offset_or_meaning_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="2030-01-31T12:00:00Z"):
        parse_moment(written)


@pytest.mark.parametrize(
    ("written", "items"),
    [
        ("", []),
        ("a", ["a"]),
        ("a, b,,c ", ["a", "b", "c"]),
        ('["a", "b"]', ["a", "b"]),
        (["a"], ["a"]),
    ],
)
def test_lists_are_commas_or_json(written: object, items: list[str]) -> None:
    assert split_list(written) == items


def test_json_in_a_variable_must_be_json() -> None:
    assert parse_json('{"a": 1}') == {"a": 1}
    for broken in ("{", "[" * 100_000):
        with pytest.raises(ValueError, match="JSON"):
            parse_json(broken)


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("*", "*"),
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.com", "https://chat.example.com"),
        ("https://chat.example.com:443", "https://chat.example.com"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origins_take_the_form_that_browsers_send(written: str, origin: str) -> None:
    assert parse_origin(written) == origin


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("chat.example.com", "scheme://host"),
        ("null", "scheme://host"),
        ("https://", "scheme://host"),
        ("https://a:b", "scheme://host"),
        ("https://[::1", "scheme://host"),
        ("https://chat.example.com/", "write 'https://chat.example.com'"),
        ("https://user@chat.example.com", "write 'https://chat.example.com'"),
        ("https://*.example.com", "list each origin"),
    ],
)
def test_what_is_no_origin_is_refused(written: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse_origin(written)


def test_networks_are_cidr_or_single_addresses() -> None:
    assert parse_network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert parse_network("192.0.2.7") == ipaddress.ip_network("192.0.2.7/32")
    assert parse_network("fd00::/8") == ipaddress.ip_network("fd00::/8")


@pytest.mark.parametrize(
    ("written", "advice"),
    [("10.0.0.1/8", "write '10.0.0.0/8'"), ("10.0.0.0/99", "CIDR"), ("lan", "CIDR"), (7, "text")],
)
def test_what_is_no_network_is_refused(written: object, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse_network(written)


def test_a_broken_regex_is_refused() -> None:
    assert parse_regex(r"^\d+$") == r"^\d+$"
    with pytest.raises(ValueError, match="isn't a regular expression"):
        parse_regex("(")


@pytest.mark.parametrize("written", ["", "example.com", "ftp://a", "https://", "http://a:b/"])
def test_what_is_no_http_url_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="https://host/path"):
        parse_http_url(written)


@pytest.mark.parametrize("parse", [parse_seconds, parse_moment, parse_network, split_list])
@given(value=ANYTHING)
def test_a_parser_gives_a_value_or_a_value_error(
    parse: Callable[[object], object], value: object
) -> None:
    with suppress(ValueError):
        parse(value)


@pytest.mark.parametrize("parse", [parse_origin, parse_regex, parse_http_url])
@given(text=st.text())
def test_a_text_parser_gives_a_value_or_a_value_error(
    parse: Callable[[str], object], text: str
) -> None:
    with suppress(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not set"),
        (True, "true"),
        (8, "8"),
        (25.0, "25"),
        (0.5, "0.5"),
        ("info", '"info"'),
        (Path("data"), '"data"'),
        ((), "[]"),
        (("a", "b"), '["a", "b"]'),
        (ipaddress.ip_network("10.0.0.0/8"), '"10.0.0.0/8"'),
        (SecretStr("hidden"), "********"),
    ],
)
def test_values_are_written_as_toml_would_and_secrets_masked(value: object, text: str) -> None:
    assert render(value) == text
