"""RFC 6455 and RFC 7692 over a real socket: what a gateway takes, and what it answers."""

import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from tests.integration.conftest import StartServer
from tests.support.peer import connected, open_peer
from tests.support.scrape import api, counted, wait_for
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    Wire,
    deflate,
    frame,
    websocket,
    wire,
)

SIZE_MAX = 65_536
NO_CONTEXT = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

CONFIG = f"""
compression = true
compression_min_bytes = 200
{DEFAULT_CONFIG}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def link(server: ServerProcess) -> AsyncIterator[Wire]:
    """A WebSocket on which nothing has been said."""
    async with websocket(server.port) as connection:
        yield connection


def connect_command() -> bytes:
    return json.dumps({"id": 1, "connect": {"token": mint("alice")}}).encode()


async def expect_connected(link: Wire) -> None:
    assert json.loads(await link.text())["connect"]["client"]


async def expect_failure(link: Wire, code: int) -> None:
    """The server closes with this code and a reason that SDKs can read, and waits for no answer."""
    close = await link.close()
    assert close.code == code
    assert close.advice()["reason"]
    assert await link.rest() == b""
    link.writer.close()


# --- messages -------------------------------------------------------------------------------------


async def test_a_message_may_come_in_many_fragments(link: Wire) -> None:
    command = connect_command()
    link.send(command[:1], fin=False)
    for position in range(1, len(command) - 1):
        link.send(command[position : position + 1], CONTINUATION, fin=False)
    link.send(command[-1:], CONTINUATION)

    await expect_connected(link)


async def test_empty_fragments_are_fragments_too(link: Wire) -> None:
    link.send(b"", fin=False)
    link.send(connect_command(), CONTINUATION, fin=False)
    link.send(b"", CONTINUATION)

    await expect_connected(link)


async def test_control_frames_come_between_fragments(link: Wire) -> None:
    """RFC 6455, 5.4: and are answered at once, in order, without ending the message."""
    command = connect_command()
    link.send(command[:10], fin=False)
    link.send(b"first", PING)
    link.send(command[10:20], CONTINUATION, fin=False)
    link.send(b"unasked", PONG)
    link.send(b"second", PING)
    link.send(b"", PING)
    pongs = [await link.frame() for _ in range(3)]
    link.send(command[20:], CONTINUATION)

    assert [(pong.opcode, pong.payload) for pong in pongs] == [
        (PONG, b"first"),
        (PONG, b"second"),
        (PONG, b""),
    ]
    await expect_connected(link)


async def test_a_ping_may_carry_125_bytes(link: Wire) -> None:
    link.send(bytes(125), PING)

    assert (await link.frame()).payload == bytes(125)


async def test_frames_may_drip_in_byte_by_byte(link: Wire) -> None:
    data = frame(PING, b"now") + frame(TEXT, connect_command())
    await link.write_apart(*(data[index : index + 1] for index in range(len(data))))

    assert (await link.frame()).payload == b"now"
    await expect_connected(link)


async def test_many_frames_may_come_in_one_segment(link: Wire) -> None:
    link.write(frame(TEXT, connect_command()) + frame(PING, b"x") * 50 + frame(PING, b"last"))

    received = [await link.frame() for _ in range(52)]
    assert [one.payload for one in received if one.opcode == PONG] == [b"x"] * 50 + [b"last"]
    assert sum(one.opcode == TEXT for one in received) == 1


async def test_a_character_may_be_split_between_fragments(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        command = json.dumps(
            {"id": 9, "publish": {"channel": room, "data": "schön 🌍"}}, ensure_ascii=False
        ).encode()
        middle = command.index("🌍".encode()) + 2
        alice.wire.send(command[:middle], fin=False)
        alice.wire.send(command[middle:], CONTINUATION)

        assert (await alice.reply(9))["publish"]["offset"] == 1
        (publication,) = (await alice.call("history", channel=room, limit=1))["publications"]
        assert publication["data"] == "schön 🌍"


# --- what breaks the rules ------------------------------------------------------------------------

BROKEN = {
    "an unmasked frame": frame(TEXT, b"{}", masked=False),
    "an unmasked close": frame(CLOSE, struct.pack("!H", 1000), masked=False),
    "a reserved data opcode": frame(0x3, b"{}"),
    "a reserved control opcode": frame(0xB),
    "a reserved bit": frame(TEXT, b"{}", rsv=0b010),
    "RSV1 on a connection without compression": frame(TEXT, deflate(b"{}"), rsv=0b100),
    "a fragmented ping": frame(PING, b"x", fin=False),
    "a ping with 126 bytes": frame(PING, bytes(126)),
    "a close with 126 bytes": frame(CLOSE, struct.pack("!H", 1000) + bytes(124)),
    "a continuation of nothing": frame(CONTINUATION, b"{}"),
    "a message inside a message": frame(TEXT, b"{", fin=False) + frame(TEXT, b"{}"),
    "a length that should be shorter": b"\x81\xfe\x00\x02" + bytes(6),
    "a length of eight bytes that should be two": b"\x81\xff" + struct.pack("!Q", 300) + bytes(304),
    "a length with its highest bit set": b"\x81\xff" + b"\xff" * 8 + bytes(4),
    "a close frame of one byte": frame(CLOSE, b"\x03"),
    "a close code that is never sent": frame(CLOSE, struct.pack("!H", 1005)),
    "a close code below all": frame(CLOSE, struct.pack("!H", 999)),
    "a close code above all": frame(CLOSE, struct.pack("!H", 5000)),
    "HTTP instead of a frame": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_frame_ends_the_connection_with_1002(
    server: ServerProcess, link: Wire, data: bytes
) -> None:
    ended = await counted(server, "disconnects_total", {"code": "1002"})
    oversize = data.startswith(b"\x81\xff\xff")
    link.write(data)

    await expect_failure(link, 1009 if oversize else 1002)
    if not oversize:
        await wait_for(server, "disconnects_total", ended + 1, {"code": "1002"})


INVALID_UTF8 = {
    "a lone continuation byte": b"\x80",
    "an overlong form": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "a cut character": "ö".encode()[:1],
}


@pytest.mark.parametrize("data", INVALID_UTF8.values(), ids=INVALID_UTF8.keys())
@pytest.mark.parametrize("fragmented", [False, True])
async def test_text_that_is_not_utf8_ends_the_connection_with_1007(
    link: Wire, data: bytes, fragmented: bool
) -> None:
    if fragmented:
        link.send(b'{"id":1,"', fin=False)
        link.send(data, CONTINUATION)
    else:
        link.send(data)

    await expect_failure(link, 1007)


async def test_a_close_reason_that_is_not_utf8_is_1007(link: Wire) -> None:
    link.send_close(1000, b"\xff")

    await expect_failure(link, 1007)


async def test_what_came_before_a_broken_frame_is_still_handled(
    server: ServerProcess, room: str
) -> None:
    async with connected(server) as alice:
        command = json.dumps({"id": 7, "publish": {"channel": room, "data": 1}}).encode()
        alice.wire.write(frame(TEXT, command) + frame(0x3, b""))
        await expect_failure(alice.wire, 1002)

    async with connected(server) as bob:
        assert (await bob.call("history", channel=room))["offset"] == 1


# --- size -----------------------------------------------------------------------------------------


def publish_of(size: int, room: str) -> bytes:
    """A publish command of exactly so many bytes."""
    empty = json.dumps({"id": 5, "publish": {"channel": room, "data": ""}}).encode()
    return empty.replace(b'""', b'"%b"' % (b"x" * (size - len(empty))))


async def test_a_message_of_64_kib_is_taken(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        command = publish_of(SIZE_MAX, room)
        assert len(command) == SIZE_MAX
        alice.wire.send(command)

        assert (await alice.reply(5))["publish"]["offset"] == 1
        assert len((await alice.publication())["data"]) > SIZE_MAX - 100


TOO_BIG = {
    "in one frame": frame(TEXT, bytes(SIZE_MAX + 1)),
    "in fragments": frame(TEXT, bytes(SIZE_MAX), fin=False) + frame(CONTINUATION, b"x"),
    "announced and never sent": frame(TEXT, b"", length=2**62),
    "binary": frame(BINARY, bytes(SIZE_MAX + 1)),
    "with a lot more behind it": frame(TEXT, bytes(8 * SIZE_MAX)),
}


@pytest.mark.parametrize("data", TOO_BIG.values(), ids=TOO_BIG.keys())
async def test_a_larger_message_ends_the_connection_with_1009(
    server: ServerProcess, link: Wire, data: bytes
) -> None:
    ended = await counted(server, "disconnects_total", {"code": "1009"})
    link.write(data)

    close = await link.close()
    assert close.code == 1009
    assert close.advice() == {
        "reason": f"a message has at most {SIZE_MAX} bytes",
        "reconnect": False,
    }
    assert await link.rest() == b""
    link.writer.close()
    await wait_for(server, "disconnects_total", ended + 1, {"code": "1009"})


async def test_who_sends_too_much_can_still_read_why(server: ServerProcess) -> None:
    """The server takes what is on its way, or the kernel would answer it with a reset."""
    async with websocket(server.port) as link:
        for _ in range(100):
            link.write(frame(TEXT, bytes(10 * SIZE_MAX)))
            await link.drain()

        assert (await link.close()).code == 1009
        assert await link.reader.read() == b""


# --- the closing handshake ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_the_servers_answer_to_a_close_has_its_code(link: Wire, code: int) -> None:
    link.send_close(code, b"bye")

    assert (await link.close()).code == code
    assert await link.rest() == b""


async def test_a_close_without_a_code_is_answered(link: Wire) -> None:
    link.write(frame(CLOSE))

    assert (await link.close()).code == 1000
    assert await link.rest() == b""


async def test_nothing_behind_a_close_frame_is_looked_at(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        command = json.dumps({"id": 7, "publish": {"channel": room, "data": 1}}).encode()
        alice.wire.write(frame(CLOSE, struct.pack("!H", 1000)) + frame(TEXT, command))
        assert (await alice.wire.close()).code == 1000

    async with connected(server) as bob:
        assert (await bob.call("history", channel=room))["offset"] == 0


async def test_the_server_waits_for_the_answer_to_its_close(server: ServerProcess) -> None:
    """The client may still be writing; what it says is ignored, and its close ends it."""
    async with open_peer(server) as peer:
        peer.send({"id": 1, "ping": {}})
        close = await peer.wire.close()
        peer.send({"id": 2, "connect": {"token": mint("alice")}})
        peer.wire.send_close(close.code)

        assert close.code == 3501
        assert await peer.wire.rest() == b""


async def test_a_half_open_connection_is_closed(server: ServerProcess) -> None:
    """A client that will send no more can't be asked anything, so it is gone."""
    async with connected(server) as alice:
        alice.wire.writer.write_eof()

        assert await alice.wire.rest() == b""


# --- compression ----------------------------------------------------------------------------------

LONG = "a long text that compresses well, " * 20
COMPRESSED: dict[str, Any] = {"Sec_WebSocket_Extensions": DEFLATE}
OFFERS = {
    DEFLATE: True,
    "permessage-deflate": True,
    NO_CONTEXT: True,
    "x-unknown, permessage-deflate; client_max_window_bits=10": True,
    "permessage-deflate; server_max_window_bits=10, permessage-deflate": True,
    "permessage-deflate; server_max_window_bits=10": False,
    "permessage-deflate; what=ever": False,
    "x-webkit-deflate-frame": False,
}


@pytest.mark.parametrize(("offer", "accepted"), OFFERS.items(), ids=OFFERS.keys())
async def test_compression_is_negotiated_without_context_takeover(
    server: ServerProcess, offer: str, accepted: bool
) -> None:
    async with wire(server.port) as link:
        response = await link.upgrade(Sec_WebSocket_Extensions=offer)

    assert response.status == 101
    assert response.headers.get("sec-websocket-extensions") == (NO_CONTEXT if accepted else None)


async def test_one_compressed_frame_serves_all_who_asked_for_it(
    server: ServerProcess, room: str
) -> None:
    async with (
        connected(server, "alice", **COMPRESSED) as alice,
        connected(server, "bob", **COMPRESSED) as bob,
        connected(server, "carol") as carol,
    ):
        for peer in (alice, bob, carol):
            await peer.call("subscribe", channel=room)
        await api(server, "publish", channel=room, data=LONG)
        frames = [await peer.wire.frame() for peer in (alice, bob, carol)]

    assert [one.compressed for one in frames] == [True, True, False]
    assert frames[0].wire == frames[1].wire
    assert len(frames[0].wire) < 200 < len(frames[2].wire)
    assert len({one.text for one in frames}) == 1
    assert json.loads(frames[0].text)["push"]["pub"]["data"] == LONG


async def test_short_messages_stay_plain(server: ServerProcess, room: str) -> None:
    async with connected(server, **COMPRESSED) as alice:
        await alice.call("subscribe", channel=room)
        await api(server, "publish", channel=room, data="short")

        assert not (await alice.wire.frame()).compressed


async def test_what_is_recovered_is_compressed_too(server: ServerProcess, room: str) -> None:
    """More than fits into a subscribe reply: the rest comes as pushes."""
    for number in range(5):
        await api(server, "publish", channel=room, data=[number, "x" * 40_000])
    async with connected(server, **COMPRESSED) as alice:
        reply = await alice.call("subscribe", channel=room, recover=True, offset=0)
        seen = [publication["data"][0] for publication in reply["publications"]]
        while len(seen) < 5:
            received = await alice.wire.frame()
            assert received.compressed
            seen.append(json.loads(received.text)["push"]["pub"]["data"][0])

    assert seen == [0, 1, 2, 3, 4]


async def test_compressed_messages_are_read(server: ServerProcess) -> None:
    """Whole and in fragments, among plain ones, with control frames between."""
    async with websocket(server.port, **COMPRESSED) as link:
        compressed = deflate(connect_command())
        link.send(compressed[:20], rsv=0b100, fin=False)
        link.send(b"hello", PING)
        link.send(compressed[20:], CONTINUATION)
        assert (await link.frame()).payload == b"hello"
        await expect_connected(link)
        link.send(b'{"id":2,"ping":{}}')
        link.send(deflate(b'{"id":3,"ping":{}}'), rsv=0b100)

        assert [await link.text(), await link.text()] == [
            '{"id":2,"ping":{}}',
            '{"id":3,"ping":{}}',
        ]


DAMAGED = {
    "no deflate data": (frame(TEXT, b"\xff\xff\xff", rsv=0b100), 1007),
    "not UTF-8 once inflated": (frame(TEXT, deflate(b"\xff"), rsv=0b100), 1007),
    "RSV1 on a continuation": (
        frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b"}", rsv=0b100),
        1002,
    ),
    "RSV1 on a ping": (frame(PING, b"", rsv=0b100), 1002),
    "another reserved bit": (frame(TEXT, deflate(b"{}"), rsv=0b110), 1002),
    "a bomb": (frame(TEXT, deflate(b" " * 50_000_000), rsv=0b100), 1009),
    "one byte too many": (frame(TEXT, deflate(b" " * (SIZE_MAX + 1)), rsv=0b100), 1009),
}


@pytest.mark.parametrize(("data", "code"), DAMAGED.values(), ids=DAMAGED.keys())
async def test_damaged_compression_ends_the_connection(
    server: ServerProcess, data: bytes, code: int
) -> None:
    async with websocket(server.port, **COMPRESSED) as link:
        link.write(data)

        await expect_failure(link, code)


# --- a client that nobody here wrote --------------------------------------------------------------


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_the_websockets_package_agrees_with_us(
    server: ServerProcess, room: str, compression: str | None
) -> None:
    async with websockets.connect(server.ws_url, compression=compression, proxy=None) as client:
        await client.send(connect_command().decode())
        assert json.loads(await client.recv())["connect"]["client"]
        await client.send(json.dumps({"id": 2, "subscribe": {"channel": room}}))
        assert json.loads(await client.recv())["subscribe"]["epoch"]
        command = json.dumps({"id": 3, "publish": {"channel": room, "data": LONG}})
        await client.send([command[:7], command[7:50], command[50:]])
        replies = [json.loads(await client.recv()) for _ in range(2)]
        pong = await client.ping()
        assert await pong < 15

        assert any("push" in reply and reply["push"]["pub"]["data"] == LONG for reply in replies)
        assert any(reply.get("publish", {}).get("offset") == 1 for reply in replies)
        assert [type(one).__name__ for one in client.protocol.extensions] == (
            ["PerMessageDeflate"] if compression else []
        )

    assert client.close_code == 1000


async def test_the_websockets_package_reads_why_it_was_closed(server: ServerProcess) -> None:
    async with websockets.connect(server.ws_url, proxy=None) as client:
        await client.send(b"binary")
        with pytest.raises(websockets.ConnectionClosed) as caught:
            await client.recv()

    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 3506
    assert json.loads(caught.value.rcvd.reason) == {
        "reason": "inappropriate protocol",
        "reconnect": False,
    }
