"""Session frames: their JSON both ways, how they are told from part A's, and any text at all."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol import session_frames
from gateway.protocol.health import Quality
from gateway.protocol.session import Gone
from gateway.protocol.session_frames import (
    LEAVE,
    PREFIX,
    TOKEN_LENGTH_MAX,
    BackoffDeclaration,
    ClientFrame,
    Counts,
    Leave,
    MalformedSessionFrame,
    Open,
    Opened,
    Resume,
    ResumedFrame,
    ServerFrame,
    decode_client_frame,
    decode_server_frame,
    is_session_frame,
)
from tests.support.fuzzing import REPEATABLE

COUNT_MAX: Final = 2**53 - 1


def decode(member: object) -> Open | Resume | int | Counts | Leave:
    return decode_client_frame(json.dumps({"session": member}))


# --- from the server ------------------------------------------------------------------------------

SERVER_FRAMES: Final[dict[bytes, ServerFrame]] = {
    session_frames.opened("t-1", 1, 25.0, 63.0, 30.0): ServerFrame(
        opened=Opened("t-1", 1, 25_000, 63_000, 30_000)
    ),
    session_frames.resumed(2, 17, 5, 62.9996, 30.0): ServerFrame(
        resumed=ResumedFrame(2, 17, 5, 63_000, 30_000)
    ),
    **{
        session_frames.gone(reason): ServerFrame(gone=session_frames.GoneFrame(reason.value))
        for reason in Gone
    },
    session_frames.ping(17, 830, 0.043, Quality.GOOD, 63.0): ServerFrame(
        ping=session_frames.Ping(17, 830, 43, "good", 63_000)
    ),
    session_frames.ack(17): ServerFrame(ack=17),
    session_frames.move(1.2, 30.0): ServerFrame(move=session_frames.Move(1200, 30_000)),
}


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=bytes.decode)
def test_a_frame_of_the_server_is_read_as_it_was_meant(frame: bytes) -> None:
    assert decode_server_frame(frame) == SERVER_FRAMES[frame]
    assert decode_server_frame(frame.decode()) == SERVER_FRAMES[frame]


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=bytes.decode)
def test_a_frame_of_the_server_begins_with_the_prefix_and_has_no_white_space(frame: bytes) -> None:
    text = frame.decode()

    assert text.startswith(PREFIX)
    assert text == json.dumps(json.loads(text), separators=(",", ":"))
    assert list(json.loads(text)) == ["session"]
    assert is_session_frame(text)


def test_every_kind_of_server_frame_is_tried() -> None:
    kinds = {name for frame in SERVER_FRAMES for name in json.loads(frame)["session"]}

    assert kinds == set(ServerFrame.__struct_fields__)


@pytest.mark.parametrize("token", ['a"b', "a\\b", "ä", "\x00"])
def test_a_token_may_hold_any_character(token: str) -> None:
    frame = decode_server_frame(session_frames.opened(token, 1, 25.0, 63.0, 30.0))

    assert frame.opened is not None
    assert frame.opened.token == token


@pytest.mark.parametrize(("seconds", "ms"), [(0.0, 0), (0.0001, 1), (0.0006, 1), (0.0434, 43)])
def test_a_round_trip_is_zero_only_before_it_is_known(seconds: float, ms: int) -> None:
    frame = decode_server_frame(session_frames.ping(0, 0, seconds, Quality.GOOD, 1.0))

    assert frame.ping is not None
    assert frame.ping.rtt == ms


def test_a_client_ignores_what_it_does_not_know() -> None:
    text = '{"session":{"ack":3,"later":{"x":1}}}'

    assert decode_server_frame(text) == ServerFrame(ack=3)
    assert decode_server_frame('{"session":{"later":1},"also":2}') == ServerFrame()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"session":null}',
        '{"session":{"ack":-1}}',
        '{"session":{"ack":1.5}}',
        '{"session":{"opened":{"token":"t"}}}',
        '{"session":{"ping":{"received":0}}}',
        '{"session":{"move":{"retry":-1,"deadline":0}}}',
        b'{"session":{"gone":{"reason":"\xff"}}}',
    ],
)
def test_a_malformed_frame_of_a_server_is_told(text: str | bytes) -> None:
    with pytest.raises(MalformedSessionFrame):
        decode_server_frame(text)


# --- from the client ------------------------------------------------------------------------------

DECLARED: Final = BackoffDeclaration(100.0, 5000.0, 1.5, 0.25, 3, 2000.0)


@pytest.mark.parametrize(
    ("frame", "meant"),
    [
        (session_frames.open_frame(BackoffDeclaration()), Open()),
        (session_frames.open_frame(DECLARED), Open(DECLARED)),
        (session_frames.resume_frame("t", 812, 2), Resume("t", 812, 2)),
        (session_frames.ack(812), 812),
        (session_frames.pong(812, 17), Counts(812, 17)),
        (LEAVE, Leave()),
    ],
    ids=["open", "open with backoff", "resume", "ack", "pong", "leave"],
)
def test_a_frame_of_the_client_is_read_as_it_was_meant(frame: bytes, meant: object) -> None:
    assert decode_client_frame(frame.decode()) == meant
    assert is_session_frame(frame.decode())


def test_what_a_client_leaves_out_has_its_default() -> None:
    assert decode({"open": {}}) == Open(BackoffDeclaration(500.0, 20_000.0, 2.0, "full", 8, 5000.0))
    assert decode({"open": {"backoff": {"attempts": 2}}}) == Open(BackoffDeclaration(attempts=2))
    assert decode({"resume": {"token": "t", "received": 0}}) == Resume("t", 0, 0)


def test_members_of_later_versions_are_ignored_inside_a_frame() -> None:
    assert decode({"leave": {"why": "bye"}}) == Leave()
    assert decode({"pong": {"received": 1, "sent": 2, "load": 0.5}}) == Counts(1, 2)


def test_a_member_that_is_null_is_absent() -> None:
    assert decode({"ack": 3, "open": None}) == 3


def test_the_largest_count_is_what_a_double_holds() -> None:
    assert decode({"ack": COUNT_MAX}) == COUNT_MAX
    with pytest.raises(MalformedSessionFrame):
        decode({"ack": COUNT_MAX + 1})


def test_the_longest_token_is_accepted() -> None:
    frame = decode({"resume": {"token": "t" * TOKEN_LENGTH_MAX, "received": 0}})

    assert isinstance(frame, Resume)
    with pytest.raises(MalformedSessionFrame):
        decode({"resume": {"token": "t" * (TOKEN_LENGTH_MAX + 1), "received": 0}})


ABSURD: Final[list[dict[str, Any]]] = [
    {"factor": 1e308},
    {"max": 1e308},
    {"attempts": 2**31},
    {"attempts": 10**30},
    {"min": 60_000, "max": 1},
    {"min": -1, "max": -1, "factor": -2, "jitter": -0.5, "attempts": -7, "timeout": -1},
    {"jitter": 1e9},
    {"timeout": 0},
]


@pytest.mark.parametrize("backoff", ABSURD, ids=json.dumps)
def test_an_absurd_backoff_is_no_malformed_frame(backoff: dict[str, Any]) -> None:
    frame = decode({"open": {"backoff": backoff}})

    assert isinstance(frame, Open)
    assert {name: getattr(frame.backoff, name) for name in backoff} == backoff


@pytest.mark.parametrize(
    "backoff",
    [
        '{"min":NaN}',
        '{"max":Infinity}',
        '{"max":1e400}',
        '{"attempts":1e2}',
        '{"attempts":8.5}',
        '{"attempts":true}',
        '{"max":null}',
        '{"min":"500"}',
        '{"jitter":"half"}',
        "[]",
        "null",
    ],
)
def test_a_backoff_that_is_no_numbers_is_malformed(backoff: str) -> None:
    with pytest.raises(MalformedSessionFrame):
        decode_client_frame('{"session":{"open":{"backoff":' + backoff + "}}}")


@pytest.mark.parametrize(
    "member",
    [
        {},
        [],
        None,
        "open",
        {"open": None},
        {"open": []},
        {"unknown": {}},
        {"opened": {"token": "t"}},
        {"ack": 1, "leave": {}},
        {"open": {}, "resume": {"token": "t", "received": 0}},
        {"ack": "1"},
        {"ack": True},
        {"ack": -1},
        {"ack": 1.5},
        {"pong": {"received": 1}},
        {"pong": {"received": 1, "sent": -1}},
        {"resume": {"token": "t"}},
        {"resume": {"received": 1}},
        {"resume": {"token": 5, "received": 1}},
        {"resume": {"token": "t", "received": 1, "attempt": -1}},
        {"resume": {"token": "t", "received": 1, "attempt": COUNT_MAX + 1}},
    ],
    ids=json.dumps,
)
def test_a_malformed_frame_of_a_client_is_told(member: object) -> None:
    with pytest.raises(MalformedSessionFrame):
        decode(member)


@pytest.mark.parametrize(
    "text",
    [
        '{"session":{"ack":1},"id":1,"connect":{}}',
        '{"session":{"ack":1}}\n{"id":1,"connect":{}}',
        '{"session":{"ack":1}}\n{"session":{"ack":2}}',
        '{"session":{"ack":1}',
        '{"session":',
        '{"session":{"resume":{"token":"\\ud800","received":1}}}',
        '{"session":{"resume":{"token":"\ud800","received":1}}}',
        '{"session":{"open":' + "[" * 100_000,
        '{"session":{"leave":{"x":' + "[" * 100_000 + "]" * 100_000 + "}}}",
    ],
    ids=lambda text: ascii(text[:60]),
)
def test_what_looks_like_a_session_frame_and_is_none_is_malformed(text: str) -> None:
    assert is_session_frame(text)
    with pytest.raises(MalformedSessionFrame):
        decode_client_frame(text)


# --- which layer it belongs to --------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
white_space = st.text(st.sampled_from(" \t\n\r"), max_size=3)


@given(st.lists(white_space, min_size=5, max_size=5), json_values)
@REPEATABLE
def test_an_object_with_the_only_key_session_is_a_session_frame(
    spaces: list[str], value: object
) -> None:
    one, two, three, four, five = spaces
    text = f'{one}{{{two}"session"{three}:{four}{json.dumps(value)}}}{five}'

    assert json.loads(text) == {"session": value}
    assert is_session_frame(text)


@given(json_values | st.dictionaries(st.text() | st.just("session"), json_values, max_size=4))
@example({"session": 1, "id": 1})
@example({"id": 1, "session": 1})
@example({"sessions": 1})
@example({"sessio": 1})
@REPEATABLE
def test_other_json_belongs_to_part_a_unless_it_begins_with_the_key(value: object) -> None:
    begins = isinstance(value, dict) and next(iter(value), None) == "session"

    for indent, separators in ((None, (",", ":")), (None, None), (2, None)):
        text = json.dumps(value, indent=indent, separators=separators)
        assert is_session_frame(text) is begins


@pytest.mark.parametrize(
    "text",
    [
        '{"\\u0073ession":{"ack":1}}',  # valid JSON for the key, but nobody writes it like that
        '{"Session":{"ack":1}}',
        '{"session":{"ack":1}}'.replace('"', "'"),
        '{session:{"ack":1}}',
        '[{"session":{"ack":1}}]',
        '"session"',
        '{"id":1,"connect":{}}\n{"session":{"ack":1}}',
        '\ufeff{"session":{"ack":1}}',
        '\xa0{"session":{"ack":1}}',
        '{\u2003"session":{"ack":1}}',
        '{"session"',
        '{"session" 1}',
        '{"session',
        "{",
        "{}",
        "",
    ],
    ids=ascii,
)
def test_what_is_no_session_frame(text: str) -> None:
    assert not is_session_frame(text)


# --- any text at all ------------------------------------------------------------------------------

FRAMES: Final = [
    *(frame.decode() for frame in SERVER_FRAMES),
    *(
        frame.decode()
        for frame in (
            session_frames.open_frame(DECLARED),
            session_frames.resume_frame("t", 812, 2),
            session_frames.pong(812, 17),
            LEAVE,
        )
    ),
]
any_text = st.text(st.characters(exclude_categories=()), max_size=200)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A frame with something cut out, and something else put there."""
    frame = draw(st.sampled_from(FRAMES))
    start = draw(st.integers(0, len(frame)))
    end = draw(st.integers(start, len(frame)))
    put = draw(any_text | st.sampled_from(FRAMES) | json_values.map(json.dumps))
    return frame[:start] + put + frame[end:]


def members(frame: ClientFrame | ServerFrame) -> Iterator[str]:
    return (name for name in frame.__struct_fields__ if getattr(frame, name) is not None)


@given(any_text | damaged() | json_values.map(lambda value: json.dumps({"session": value})))
@settings(REPEATABLE, max_examples=1000)
def test_any_text_is_decoded_or_malformed(text: str) -> None:
    try:
        frame = decode_client_frame(text)
    except MalformedSessionFrame:
        pass
    else:
        assert isinstance(frame, Open | Resume | int | Counts | Leave)
        (name,) = json.loads(text)
        assert name == "session"
    try:
        server_frame = decode_server_frame(text)
    except MalformedSessionFrame:
        pass
    else:
        assert set(members(server_frame)) <= set(json.loads(text)["session"])


@given(st.binary(max_size=200))
@REPEATABLE
def test_any_bytes_are_decoded_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedSessionFrame):
        decode_server_frame(data)


@given(any_text | damaged())
@settings(REPEATABLE, max_examples=500)
def test_what_a_session_frame_is_told_by_is_its_beginning(text: str) -> None:
    stripped = text.lstrip(" \t\n\r")
    inside = stripped[1:].lstrip(" \t\n\r")
    behind = inside[len('"session"') :].lstrip(" \t\n\r")

    assert is_session_frame(text) is (
        stripped[:1] == "{" and inside.startswith('"session"') and behind[:1] == ":"
    )
