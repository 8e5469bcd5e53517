"""Who gets a WebSocket, and what the answer says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.protocol import State
from websockets.uri import parse_uri

from gateway.protocol.handshake import (
    Accepted,
    OriginPolicy,
    Refused,
    accept_key,
    accepts_deflate,
    negotiate,
)
from tests.support.fuzzing import REPEATABLE
from tests.support.wire import KEY, upgrade_headers

ANY_ORIGIN = OriginPolicy(frozenset({"*"}))


def ask(
    query: str = "",
    *,
    method: str = "GET",
    origins: OriginPolicy = ANY_ORIGIN,
    deflate: bool = False,
    **changes: str | None,
) -> Accepted | Refused:
    """The answer to a good handshake with some headers changed; see `upgrade_headers`."""
    return negotiate(method, query, CIMultiDict(upgrade_headers(**changes)), origins, deflate)


def accepted(query: str = "", **options: str | None) -> Accepted:
    answer = ask(query, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Accepted)
    return answer


def test_the_rfcs_own_example_is_answered_as_the_rfc_says() -> None:
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3

    assert ask() == Accepted(
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "UPGRADE,keep-alive"},
        {"Sec_WebSocket_Version": " 13 "},
        {"Sec_WebSocket_Key": f" {KEY} "},
    ],
)
def test_headers_are_read_as_http_has_them(changes: dict[str, str]) -> None:
    assert isinstance(ask(**changes), Accepted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "status", "outcome"),
    [
        ({"Upgrade": None}, 426, "not_websocket"),
        ({"Upgrade": "h2c"}, 426, "not_websocket"),
        ({"Connection": None}, 426, "not_websocket"),
        ({"Connection": "keep-alive"}, 426, "not_websocket"),
        ({"Sec_WebSocket_Version": None}, 426, "bad_version"),
        ({"Sec_WebSocket_Version": "8"}, 426, "bad_version"),
        ({"Sec_WebSocket_Key": None}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": ""}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": KEY + "AAAA"}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": KEY[:-2]}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": KEY[:10] + " " + KEY[10:]}, 400, "bad_request"),
        ({"Sec_WebSocket_Key": "é" * 24}, 400, "bad_request"),
    ],
)
def test_what_is_no_handshake_is_refused(
    changes: dict[str, str | None], status: int, outcome: str
) -> None:
    answer = ask(**changes)  # type: ignore[arg-type]

    assert isinstance(answer, Refused)
    assert (answer.status, answer.outcome) == (status, outcome)
    assert answer.reason


def test_a_refusal_says_what_would_be_right() -> None:
    post, plain, old = ask(method="POST"), ask(Upgrade=None), ask(Sec_WebSocket_Version="8")

    assert isinstance(post, Refused)
    assert (post.status, post.headers) == (405, (("Allow", "GET"),))
    assert isinstance(plain, Refused)
    assert plain.headers == (("Upgrade", "websocket"), ("Connection", "Upgrade"))
    assert isinstance(old, Refused)
    assert old.headers == (("Sec-WebSocket-Version", "13"),)


# --- origins ----------------------------------------------------------------------------------

OWN = OriginPolicy()
LISTED = OriginPolicy(frozenset({"https://chat.example.com", "http://localhost:3000"}))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1", "127.0.0.1"),
        ("https://chat.example.com", "chat.example.com"),
        ("https://Chat.Example.com", "chat.example.COM"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_page_of_the_same_host_may_connect(origin: str, host: str) -> None:
    assert OWN.admits(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "chat.example.com"),
        ("https://chat.example.com.evil.example", "chat.example.com"),
        ("https://evilchat.example.com", "chat.example.com"),
        ("http://localhost:8000", "localhost:9000"),
        ("http://localhost", "localhost:9000"),
        ("https://user@chat.example.com", "chat.example.com"),
        ("null", "chat.example.com"),
        ("null", ""),
        ("", ""),
        ("file://", ""),
    ],
)
def test_a_page_of_another_host_may_not(origin: str, host: str) -> None:
    assert not OWN.admits(origin, host)


def test_who_sends_no_origin_is_no_web_page_and_may_connect() -> None:
    assert OWN.admits(None, "chat.example.com")
    assert LISTED.admits(None, "chat.example.com")


def test_a_list_of_origins_replaces_the_own_host() -> None:
    assert LISTED.admits("https://chat.example.com", "api.example.com")
    assert LISTED.admits("https://CHAT.example.com/", "api.example.com")
    assert LISTED.admits("http://localhost:3000", "api.example.com")
    assert not LISTED.admits("http://chat.example.com", "api.example.com")
    assert not LISTED.admits("https://chat.example.com:444", "api.example.com")
    assert not LISTED.admits("https://api.example.com", "api.example.com")


def test_an_asterisk_admits_every_page() -> None:
    assert ANY_ORIGIN.admits("https://anywhere.example", "api.example.com")
    assert ANY_ORIGIN.admits("null", "api.example.com")


@pytest.mark.parametrize("origin", ["https://evil.example", "http://[", "null"])
def test_a_refused_origin_is_403_and_says_which_setting_helps(origin: str) -> None:
    answer = ask(origins=OWN, Origin=origin)

    assert isinstance(answer, Refused)
    assert (answer.status, answer.outcome) == (403, "bad_origin")
    assert "allowed_origins" in answer.reason


def test_an_admitted_origin_gets_in() -> None:
    assert isinstance(ask(origins=OWN, Origin="http://127.0.0.1"), Accepted)


# --- what the client chooses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        (None, None),
        ("centrifuge-json", b"centrifuge-json"),
        ("centrifuge-protobuf", b"centrifuge-protobuf"),
        ("centrifuge-protobuf, centrifuge-json", b"centrifuge-json"),
        ("something, centrifuge-json", b"centrifuge-json"),
        ("something", None),
        ("Centrifuge-JSON", None),  # names are compared as they are (RFC 6455, 11.5)
    ],
)
def test_a_subprotocol_is_answered_when_it_is_one_of_ours(
    offered: str | None, answered: bytes | None
) -> None:
    answer = accepted(Sec_WebSocket_Protocol=offered)

    lines = [line for line in answer.response.split(b"\r\n") if b"Protocol: " in line]
    assert lines == ([] if answered is None else [b"Sec-WebSocket-Protocol: " + answered])
    assert answer.protobuf == (answered == b"centrifuge-protobuf")


@pytest.mark.parametrize(
    ("query", "protobuf", "native_ping"),
    [
        ("cf_protocol=protobuf", True, False),
        ("format=protobuf", True, False),
        ("cf_protocol=json", False, False),
        ("cf_ws_frame_ping_pong=true", False, True),
        ("cf_ws_frame_ping_pong=false", False, False),
        ("cf_ws_frame_ping_pong=true&cf_protocol=protobuf", True, True),
        ("unknown=1&&=&%ff", False, False),
    ],
)
def test_the_query_chooses_too(query: str, protobuf: bool, native_ping: bool) -> None:
    answer = accepted(query)

    assert (answer.protobuf, answer.native_ping) == (protobuf, native_ping)


@pytest.mark.parametrize(
    "extensions",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10; server_no_context_takeover",
        "permessage-deflate;client_no_context_takeover;server_no_context_takeover;client_max_window_bits",
        "Permessage-Deflate;CLIENT_NO_CONTEXT_TAKEOVER",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; server_max_window_bits=10, permessage-deflate",
    ],
)
def test_compression_is_granted_when_the_offer_is_one_that_we_meet(extensions: str) -> None:
    assert accepts_deflate(extensions)

    granted = ask(deflate=True, Sec_WebSocket_Extensions=extensions)
    declined = ask(deflate=False, Sec_WebSocket_Extensions=extensions)

    assert isinstance(granted, Accepted)
    assert granted.deflate
    assert (
        b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        b"client_no_context_takeover\r\n" in granted.response
    )
    assert isinstance(declined, Accepted)
    assert not declined.deflate
    assert b"Extensions" not in declined.response


@pytest.mark.parametrize(
    "extensions",
    [
        "",
        "x-webkit-deflate-frame",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; something_new",
        "permessage-bzip2",
    ],
)
def test_compression_is_declined_when_the_offer_asks_for_more(extensions: str) -> None:
    assert not accepts_deflate(extensions)

    answer = ask(deflate=True, Sec_WebSocket_Extensions=extensions)

    assert isinstance(answer, Accepted)
    assert not answer.deflate
    assert b"Extensions" not in answer.response


@pytest.mark.parametrize("deflate", [True, False])
def test_the_websockets_package_takes_our_answer(deflate: bool) -> None:
    client = ClientProtocol(
        parse_uri("ws://127.0.0.1/connection/websocket"),
        extensions=[ClientPerMessageDeflateFactory(client_max_window_bits=True)],
        subprotocols=["centrifuge-json"],  # type: ignore[list-item]
    )
    request = client.connect()

    answer = negotiate("GET", "", CIMultiDict(request.headers.raw_items()), OWN, deflate)

    assert isinstance(answer, Accepted)
    client.send_request(request)
    client.receive_data(answer.response)
    assert client.handshake_exc is None
    assert client.state is State.OPEN
    assert client.subprotocol == "centrifuge-json"
    assert bool(client.extensions) == deflate


header_text = st.text(st.characters(max_codepoint=0x17F, exclude_categories=["Cs"]), max_size=30)
nearly = st.one_of(
    header_text,
    st.sampled_from(
        ["websocket", "Upgrade", "13", KEY, "http://[", "permessage-deflate;;,;", ",", "centrifuge"]
    ),
)


@given(
    query=header_text,
    headers=st.dictionaries(
        st.sampled_from([*upgrade_headers(), "Origin", "Sec-WebSocket-Protocol"]), nearly
    ),
    origins=st.sampled_from([OWN, LISTED, ANY_ORIGIN]),
)
@settings(REPEATABLE, max_examples=300)
def test_any_headers_are_accepted_or_refused(
    query: str, headers: dict[str, str], origins: OriginPolicy
) -> None:
    answer = negotiate(
        "GET", query, CIMultiDict({**upgrade_headers(), **headers}), origins, deflate_enabled=True
    )

    if isinstance(answer, Accepted):
        assert answer.response.startswith(b"HTTP/1.1 101 ")
        assert answer.response.count(b"\r\n\r\n") == 1
        assert answer.response.endswith(b"\r\n\r\n")
    else:
        assert answer.status in (400, 403, 426)
