"""Every claim is checked for its type; nothing but TokenInvalid comes of a wrong one."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.protocol.claims import (
    ConnectClaims,
    OptionsOverride,
    ServerSubscription,
    SubscribeClaims,
    TokenInvalid,
)
from gateway.token_claims import OVERRIDE_NAMES, connect_claims, subscribe_claims


def b64(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_an_empty_payload_is_an_anonymous_connection_that_never_expires() -> None:
    assert connect_claims({}) == ConnectClaims(user="")
    assert connect_claims({"sub": None, "info": None, "subs": None}) == ConnectClaims(user="")


def test_a_connection_token_says_everything_at_once() -> None:
    claims = connect_claims(
        {
            "sub": "alice",
            "exp": 2000,
            "info": {"name": "Ålice", "tags": [1, 2.5, None]},
            "meta": {"plan": "gold"},
            "channels": ["news", "chat:lobby"],
            "subs": {
                "chat:lobby": {
                    "info": {"role": "host"},
                    "data": [1],
                    "override": {"presence": {"value": False}, "force_recovery": {"value": True}},
                },
                "plain": {},
                "nothing": None,
            },
        }
    )

    assert claims == ConnectClaims(
        user="alice",
        expire_at=2000.0,
        info='{"name":"Ålice","tags":[1,2.5,null]}'.encode(),
        meta=b'{"plan":"gold"}',
        subs={
            "news": ServerSubscription(),
            "chat:lobby": ServerSubscription(
                info=b'{"role":"host"}',
                data=b"[1]",
                override=OptionsOverride(presence=False, force_recovery=True),
            ),
            "plain": ServerSubscription(),
            "nothing": ServerSubscription(),
        },
    )


def test_a_subscription_token_says_everything_at_once() -> None:
    claims = subscribe_claims(
        {
            "sub": "alice",
            "channel": "$room",
            "client": "c-1",
            "expire_at": 3000,
            "exp": 2000,
            "b64info": b64({"a": 1}),
            "override": {"join_leave": {"value": True}},
        }
    )

    assert claims == SubscribeClaims(
        user="alice",
        channel="$room",
        client="c-1",
        expire_at=3000.0,
        info=b'{"a":1}',
        override=OptionsOverride(join_leave=True),
    )


@pytest.mark.parametrize(
    ("times", "expire_at"),
    [
        ({}, 0.0),
        ({"exp": 2000}, 2000.0),
        ({"exp": 2000.5}, 2000.5),
        ({"exp": 2000, "expire_at": 0}, 0.0),
        ({"exp": 2000, "expire_at": 3000}, 3000.0),
        ({"expire_at": 3000}, 3000.0),
        ({"exp": 2000, "expire_at": None}, 2000.0),
    ],
)
def test_expire_at_goes_before_exp(times: dict[str, Any], expire_at: float) -> None:
    assert connect_claims(times).expire_at == expire_at
    assert subscribe_claims({"channel": "c", **times}).expire_at == expire_at


def test_the_two_kinds_of_token_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(TokenInvalid, match="it is a subscription token"):
        connect_claims({"sub": "alice", "channel": "c"})
    for channel in ({}, {"channel": None}, {"channel": ""}):
        with pytest.raises(TokenInvalid, match="it is no subscription token"):
            subscribe_claims({"sub": "alice", **channel})


def test_base64_goes_before_json_in_place() -> None:
    assert connect_claims({"info": 1, "b64info": b64(2)}).info == b"2"
    assert connect_claims({"info": 1, "b64info": ""}).info == b"1"
    assert connect_claims({"b64info": b64(None)}).info is None
    subs = connect_claims({"subs": {"c": {"b64data": b64("x"), "b64info": b64([])}}}).subs
    assert subs["c"] == ServerSubscription(info=b"[]", data=b'"x"')


def test_json_is_written_anew_in_one_line() -> None:
    spread = base64.b64encode(b'{\n "a" :\t1 }\n').decode()

    assert connect_claims({"b64info": spread}).info == b'{"a":1}'


def test_an_override_without_value_is_false() -> None:
    """As issuers write it that leave out empty values."""
    assert subscribe_claims({"channel": "c", "override": {"presence": {}}}).override == (
        OptionsOverride(presence=False)
    )
    assert subscribe_claims({"channel": "c", "override": {"presence": None}}).override == (
        OptionsOverride()
    )
    assert OVERRIDE_NAMES == (
        "presence",
        "join_leave",
        "force_recovery",
        "force_positioning",
        "force_push_join_leave",
    )


@pytest.mark.parametrize(
    "payload",
    [
        {"sub": 7},
        {"sub": ["alice"]},
        {"channel": 7},
        {"channel": {"a": 1}},
        {"expire_at": "soon"},
        {"expire_at": -1},
        {"expire_at": True},
        {"expire_at": float("nan")},
        {"exp": "2000"},
        {"b64info": 7},
        {"b64info": 0},
        {"b64info": False},
        {"b64info": "***"},
        {"b64info": "é"},
        {"b64info": base64.b64encode(b"{").decode()},
        {"b64info": base64.b64encode(b"\xff").decode()},
        {"info": nested(300)},
        {"b64info": b64(nested(300))},
        {"meta": nested(300)},
        {"channels": "news"},
        {"channels": {"news": 1}},
        {"channels": [7]},
        {"channels": [""]},
        {"subs": ["news"]},
        {"subs": {"": {}}},
        {"subs": {"news": 7}},
        {"subs": {"news": {"b64data": "***"}}},
        {"subs": {"news": {"override": True}}},
        {"subs": {"news": {"override": {"presence": True}}}},
        {"subs": {"news": {"override": {"presence": {"value": 1}}}}},
    ],
)
def test_a_claim_of_the_wrong_type_makes_the_token_invalid(payload: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        connect_claims(payload)


@pytest.mark.parametrize(
    "payload",
    [
        {"sub": 7},
        {"channel": 7},
        {"client": 7},
        {"client": ["c"]},
        {"expire_at": []},
        {"override": []},
        {"override": {"presence": "no"}},
    ],
)
def test_a_wrong_claim_of_a_subscription_makes_the_token_invalid(payload: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        subscribe_claims({"channel": "c", **payload})


def test_no_reason_repeats_a_claim() -> None:
    for payload in (
        {"sub": ["hunter2"]},
        {"expire_at": "hunter2"},
        {"channels": [["hunter2"]]},
        {"subs": {"hunter2": 7}},
        {"b64info": "hunter2!"},
    ):
        with pytest.raises(TokenInvalid) as caught:
            connect_claims(payload)
        assert "hunter2" not in caught.value.reason


NAMES = (
    *("sub", "exp", "expire_at", "info", "b64info", "channels", "subs", "meta", "override"),
    *("channel", "client", "data", "b64data", "presence", "value", "c"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
@hypothesis_settings(deadline=None, max_examples=300)
def test_any_payload_gives_claims_or_token_invalid(payload: dict[str, Any]) -> None:
    with suppress(TokenInvalid):
        assert isinstance(connect_claims(payload), ConnectClaims)
    with suppress(TokenInvalid):
        assert isinstance(subscribe_claims(payload), SubscribeClaims)
