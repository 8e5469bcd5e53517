"""A token names one session of one node, and nobody else can make one."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.resume_tokens import KEY_BYTES, SESSION_ID_BYTES, ResumeTokens, SessionId

KEY = bytes(range(KEY_BYTES))
TOKENS = ResumeTokens(KEY, "node-1")
SESSION = SessionId(bytes(range(SESSION_ID_BYTES)))
LENGTH = 56


@given(st.binary(min_size=SESSION_ID_BYTES, max_size=SESSION_ID_BYTES))
def test_a_token_names_its_session(raw: bytes) -> None:
    session = SessionId(raw)
    assert TOKENS.read(TOKENS.sign(session)) == session


def test_a_token_fits_into_json_and_urls_as_it_is() -> None:
    token = TOKENS.sign(SESSION)
    assert len(token) == LENGTH
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_the_next_process_of_the_same_name_and_key_reads_it() -> None:
    assert ResumeTokens(KEY, "node-1").read(TOKENS.sign(SESSION)) == SESSION


@pytest.mark.parametrize(
    ("key", "node"),
    [(KEY, "node-2"), (bytes(KEY_BYTES), "node-1"), (KEY, "")],
    ids=["another node's", "another key's", "no node's"],
)
def test_others_dont(key: bytes, node: str) -> None:
    others = ResumeTokens(key, node)
    assert others.read(TOKENS.sign(SESSION)) is None
    assert TOKENS.read(others.sign(SESSION)) is None


def test_ids_are_never_the_same() -> None:
    made = {TOKENS.new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(session) for session in made} == {SESSION_ID_BYTES}


@given(st.integers(0, LENGTH - 1), st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_a_token_with_another_character_names_nothing(place: int, character: str) -> None:
    token = TOKENS.sign(SESSION)
    forged = token[:place] + character + token[place + 1 :]
    assert (TOKENS.read(forged) == SESSION) is (forged == token)


@pytest.mark.parametrize("length", range(LENGTH))
def test_a_part_of_a_token_names_nothing(length: int) -> None:
    assert TOKENS.read(TOKENS.sign(SESSION)[:length]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token + "AAAA",
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token[:-1] + "+",
        lambda token: token[:-1] + "/",
        lambda token: token[:-1] + "é",
        lambda token: token[:-1] + "\N{FULLWIDTH LATIN SMALL LETTER A}",
        lambda token: token[:28] + "\0" + token[28:],
        lambda token: token[:4] + "====" + token[8:],
    ],
)
def test_a_token_with_something_else_names_nothing(change: object) -> None:
    assert callable(change)
    assert TOKENS.read(change(TOKENS.sign(SESSION))) is None


@given(st.text(max_size=512))
def test_garbage_names_nothing(text: str) -> None:
    assert TOKENS.read(text) is None


@given(st.binary(min_size=42, max_size=42))
def test_neither_do_bytes_of_the_right_number(raw: bytes) -> None:
    assert TOKENS.read(base64.urlsafe_b64encode(raw).decode()) is None
