"""WebSocket frames: read as RFC 6455 has them, however the bytes are cut; written as others read.

The `websockets` package, which shares no code with ours, says what is right.
"""

import gc
import random
import struct
import zlib
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.frames import Opcode as Opcodes
from websockets.protocol import CLIENT, SERVER, Protocol

from gateway.protocol import frames
from gateway.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_PAYLOAD,
    MESSAGE_TOO_BIG,
    NO_STATUS,
    NORMAL_CLOSURE,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    FrameReader,
    Message,
    Opcode,
)
from tests.support.fuzzing import REPEATABLE
from tests.support.wire import deflate, frame

SIZE_MAX = 1000
LONG_SIZE_MAX = 200_000


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


def read(data: bytes, reader: FrameReader | None = None) -> list[Message]:
    """The messages in bytes that break no rule."""
    reader = FrameReader(LONG_SIZE_MAX) if reader is None else reader
    messages = reader.feed(data)
    assert reader.failure is None
    return messages


def failure_code(data: bytes, reader: FrameReader | None = None) -> int:
    """With which code the reader refuses bytes that it hasn't had any message from."""
    reader = FrameReader(SIZE_MAX) if reader is None else reader
    assert reader.feed(data) == []
    assert reader.failure is not None
    assert reader.failure.reason
    return reader.failure.code


# --- whole messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, 124, 125, 126, 127, 1000, 65535, 65536, 100_000])
def test_a_message_of_any_length_is_read(size: int) -> None:
    text = "x" * size

    assert read(frame(TEXT, text.encode())) == [(TEXT, text)]
    assert read(frame(BINARY, text.encode())) == [(BINARY, text.encode())]


def test_a_message_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert read(frame(TEXT, b"x" * SIZE_MAX), FrameReader(SIZE_MAX)) == [(TEXT, "x" * SIZE_MAX)]
    assert failure_code(frame(TEXT, b"x" * (SIZE_MAX + 1))) == MESSAGE_TOO_BIG


def test_the_limit_may_be_as_short_as_the_longest_short_frame() -> None:
    assert read(frame(TEXT, b"x" * 125), FrameReader(125)) == [(TEXT, "x" * 125)]
    assert failure_code(frame(TEXT, b"x" * 126), FrameReader(125)) == MESSAGE_TOO_BIG


def test_every_mask_is_taken_off() -> None:
    numbers = random.Random(1)
    for size in (1, 2, 3, 4, 5, 7, 100, 300):
        key = numbers.randbytes(4)
        payload = numbers.randbytes(size)
        masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)

        assert read(b"\x82" + length + key + masked) == [(BINARY, payload)]


def test_several_messages_come_out_in_order() -> None:
    data = frame(TEXT, b"one") + frame(PING, b"?") + frame(BINARY, b"\xff") + frame(TEXT, b"two")

    assert read(data) == [(TEXT, "one"), (PING, b"?"), (BINARY, b"\xff"), (TEXT, "two")]


def test_a_short_message_behind_half_of_another_is_not_taken_for_a_whole_one() -> None:
    reader = FrameReader(SIZE_MAX)
    whole = frame(TEXT, b"a short one")

    assert reader.feed(whole[:5]) == []
    # By itself this would be a frame: 0x81, a mask and four bytes.
    rest = whole[5:]
    assert reader.feed(rest) == [(TEXT, "a short one")]


def test_an_idle_reader_holds_no_buffer() -> None:
    reader = FrameReader(SIZE_MAX, deflate=True)
    reader.feed(frame(TEXT, b"one ", fin=False) + frame(CONTINUATION, b"message"))
    reader.feed(frame(PING, b"x" * 125)[:60])
    reader.feed(frame(PING, b"x" * 125)[60:])
    reader.feed(frame(TEXT, deflate(b"{}"), rsv=0b100))

    assert not [held for held in gc.get_referents(reader) if isinstance(held, bytearray)]


# --- fragments and control frames -------------------------------------------------------------


def test_a_message_may_come_in_fragments_with_control_frames_between() -> None:
    reader = FrameReader(SIZE_MAX)

    assert reader.feed(frame(TEXT, b"in ", fin=False)) == []
    assert reader.feed(frame(PING, b"still there?")) == [(PING, b"still there?")]
    assert reader.feed(frame(CONTINUATION, b"three ", fin=False)) == []
    assert reader.feed(frame(PONG, b"")) == [(PONG, b"")]
    assert reader.feed(frame(CONTINUATION, b"parts")) == [(TEXT, "in three parts")]
    assert reader.feed(frame(TEXT, b"next")) == [(TEXT, "next")]


def test_a_character_may_be_split_between_fragments() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]

    data = frame(TEXT, first, fin=False) + frame(CONTINUATION, second)

    assert read(data) == [(TEXT, "é")]


def test_empty_fragments_are_fragments_too() -> None:
    data = frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION)

    assert read(data) == [(BINARY, b"")]


def test_all_fragments_together_are_held_against_the_limit() -> None:
    reader = FrameReader(SIZE_MAX)
    assert reader.feed(frame(TEXT, b"x" * 600, fin=False)) == []
    # The announcement is enough: the payload needn't arrive.
    assert failure_code(frame(CONTINUATION, b"x" * 401)[:8], reader) == MESSAGE_TOO_BIG


def test_the_limit_begins_anew_with_each_message() -> None:
    reader = FrameReader(SIZE_MAX)
    for _ in range(3):
        data = frame(TEXT, b"x" * 600, fin=False) + frame(CONTINUATION, b"y" * 400)
        assert read(data, reader) == [(TEXT, "x" * 600 + "y" * 400)]


def test_a_length_that_nobody_could_hold_is_refused_from_the_header() -> None:
    header = b"\x81\xff" + struct.pack("!Q", 2**63)

    assert failure_code(header) == MESSAGE_TOO_BIG


def test_nothing_behind_a_close_frame_is_looked_at() -> None:
    reader = FrameReader(SIZE_MAX)
    goodbye = frame(CLOSE, close_payload(1000, b"bye"))

    assert reader.feed(goodbye + frame(TEXT, b"too late")) == [(CLOSE, close_payload(1000, b"bye"))]
    assert reader.feed(frame(TEXT, b"later still")) == []
    assert reader.feed(frame(TEXT, b"x" * 600)) == []
    assert reader.feed(b"\xff" * 20) == []
    assert reader.failure is None


# --- broken rules -----------------------------------------------------------------------------

PROTOCOL_ERRORS = {
    "an unknown opcode for data": frame(0x3, b"x"),
    "an unknown opcode for control": frame(0xB, b"x"),
    "no mask": frame(TEXT, b"hello there", masked=False),
    "no mask on a control frame": frame(PING, b"x", masked=False),
    "a fragmented ping": frame(PING, b"x", fin=False),
    "a ping of 126 bytes": frame(PING, b"x" * 126),
    "a close of 126 bytes": frame(CLOSE, close_payload(1000, b"x" * 124)),
    "a reserved bit on a ping": frame(PING, b"x", rsv=0b100),
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "a message inside another": frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
    "another kind inside a message": frame(TEXT, b"x", fin=False) + frame(BINARY, b"y"),
    "RSV1 without an extension": frame(TEXT, b"x", rsv=0b100),
    "RSV2": frame(TEXT, b"x", rsv=0b010),
    "RSV3": frame(BINARY, b"x", rsv=0b001),
    "a short length in 16 bits": b"\x81\xfe\x00\x7d" + bytes(4 + 125),
    "a short length in 64 bits": b"\x81\xff" + struct.pack("!Q", 125) + bytes(4 + 125),
    "a middling length in 64 bits": b"\x81\xff" + struct.pack("!Q", 65535),
    "half a close code": frame(CLOSE, b"\x03"),
    "a close code below 1000": frame(CLOSE, close_payload(999)),
    "a close code for no code": frame(CLOSE, close_payload(1005)),
    "a close code for a lost line": frame(CLOSE, close_payload(1006)),
    "a reserved close code": frame(CLOSE, close_payload(1004)),
    "an unassigned close code": frame(CLOSE, close_payload(2999)),
    "the first unassigned close code": frame(CLOSE, close_payload(1015)),
    "a close code above all": frame(CLOSE, close_payload(5000)),
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS.keys())
def test_a_broken_rule_is_1002(data: bytes) -> None:
    assert failure_code(data) == PROTOCOL_ERROR


@pytest.mark.parametrize("rsv", [0b100, 0b010, 0b001, 0b101])
def test_with_compression_only_a_messages_first_frame_may_have_rsv1_and_nothing_else(
    rsv: int,
) -> None:
    first = frame(TEXT, deflate(b"x")[:1], fin=False, rsv=0b100)

    assert (
        failure_code(first + frame(CONTINUATION, b"x", rsv=rsv), FrameReader(SIZE_MAX, True))
        == PROTOCOL_ERROR
    )
    if rsv != 0b100:
        alone = frame(TEXT, b"x", rsv=rsv)
        assert failure_code(alone, FrameReader(SIZE_MAX, True)) == PROTOCOL_ERROR


INVALID_PAYLOADS = {
    "a short text that isn't UTF-8": frame(TEXT, b"\xff\xfe"),
    "a text that ends inside a character": frame(TEXT, "é".encode()[:1]),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "a long text that isn't UTF-8": frame(TEXT, b"x" * 200 + b"\xff"),
    "fragments that aren't UTF-8": frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"\xff"),
    "a close reason that isn't UTF-8": frame(CLOSE, close_payload(1000, b"\xff")),
}


@pytest.mark.parametrize("data", INVALID_PAYLOADS.values(), ids=INVALID_PAYLOADS.keys())
def test_text_that_is_not_utf8_is_1007(data: bytes) -> None:
    assert failure_code(data) == INVALID_PAYLOAD


@pytest.mark.parametrize("data", [*PROTOCOL_ERRORS.values(), *INVALID_PAYLOADS.values()])
def test_what_came_before_a_broken_rule_counts_and_nothing_after_it(data: bytes) -> None:
    reader = FrameReader(SIZE_MAX)

    assert reader.feed(frame(TEXT, b"before") + data + frame(TEXT, b"after")) == [(TEXT, "before")]
    failure = reader.failure
    assert failure is not None
    assert reader.feed(frame(TEXT, b"later")) == []
    assert reader.feed(frame(BINARY, b"x" * 300)) == []
    assert reader.failure is failure


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_a_close_frame_may_carry_any_code_that_may_be_sent(code: int) -> None:
    payload = close_payload(code, "bis später".encode())

    assert read(frame(CLOSE, payload)) == [(CLOSE, payload)]
    assert frames.close_code(payload) == code


def test_a_close_frame_may_be_empty() -> None:
    assert read(frame(CLOSE)) == [(CLOSE, b"")]
    assert frames.close_code(b"") == NO_STATUS


# --- compression ------------------------------------------------------------------------------


def test_compressed_messages_are_inflated_each_by_itself() -> None:
    reader = FrameReader(SIZE_MAX, deflate=True)
    data = frame(TEXT, deflate(b"hello " * 20), rsv=0b100) + frame(TEXT, b"plain")
    data += frame(BINARY, deflate(b"hello " * 20), rsv=0b100)

    assert read(data, reader) == [
        (TEXT, "hello " * 20),
        (TEXT, "plain"),
        (BINARY, b"hello " * 20),
    ]


def test_a_compressed_message_may_come_in_fragments() -> None:
    compressed = deflate(b"hello " * 20)
    data = frame(TEXT, compressed[:3], fin=False, rsv=0b100) + frame(PING)
    data += frame(CONTINUATION, compressed[3:])

    assert read(data, FrameReader(SIZE_MAX, True)) == [(PING, b""), (TEXT, "hello " * 20)]


def test_a_plain_message_behind_a_compressed_one_in_fragments_is_plain() -> None:
    reader = FrameReader(SIZE_MAX, deflate=True)
    read(frame(TEXT, deflate(b"one"), rsv=0b100), reader)

    data = frame(TEXT, b"tw", fin=False) + frame(CONTINUATION, b"o")

    assert read(data, reader) == [(TEXT, "two")]


def test_a_block_that_says_it_is_the_last_is_read_too() -> None:
    """RFC 7692, 7.2.3.4: a message may end with a final block and an empty byte."""
    compressor = zlib.compressobj(wbits=-15)
    final = compressor.compress(b"Hello") + compressor.flush() + b"\x00"

    assert read(frame(TEXT, final, rsv=0b100), FrameReader(SIZE_MAX, True)) == [(TEXT, "Hello")]


def test_a_message_is_held_against_the_limit_at_its_full_length() -> None:
    reader = FrameReader(SIZE_MAX, deflate=True)
    fits = frame(TEXT, deflate(b"x" * SIZE_MAX), rsv=0b100)
    assert read(fits, reader) == [(TEXT, "x" * SIZE_MAX)]

    assert (
        failure_code(frame(TEXT, deflate(b"x" * (SIZE_MAX + 1)), rsv=0b100), reader)
        == MESSAGE_TOO_BIG
    )


def test_a_bomb_is_noticed_without_being_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    produced = []

    class Watched:
        """zlib's decompressor, and how much it gives."""

        def __init__(self, wbits: int) -> None:
            self._inflater = zlib.decompressobj(wbits=wbits)

        def decompress(self, data: bytes, max_length: int = 0) -> bytes:
            content = self._inflater.decompress(data, max_length)
            produced.append(len(content))
            return content

    bomb = deflate(bytes(2_000_000))
    assert len(bomb) < 2000
    watched = SimpleNamespace(decompressobj=Watched, MAX_WBITS=15, error=zlib.error)
    monkeypatch.setattr("gateway.protocol.frames.zlib", watched)

    reader = FrameReader(2000, deflate=True)
    assert failure_code(frame(TEXT, bomb, rsv=0b100), reader) == MESSAGE_TOO_BIG
    assert produced == [2001]


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\xff", b"\x07", deflate(b"hello")[1:] + b"\x07"])
def test_damaged_compression_is_1007(damage: bytes) -> None:
    data = frame(BINARY, damage, rsv=0b100)

    assert failure_code(data, FrameReader(SIZE_MAX, True)) == INVALID_PAYLOAD


def test_inflated_text_must_be_utf8_too() -> None:
    data = frame(TEXT, deflate(b"\xff"), rsv=0b100)

    assert failure_code(data, FrameReader(SIZE_MAX, True)) == INVALID_PAYLOAD


# --- against another implementation -----------------------------------------------------------


def by_websockets(data: bytes, deflated: bool) -> tuple[list[Message], int | None]:
    """What the `websockets` package makes of the bytes, in our terms."""
    protocol = Protocol(SERVER, max_size=SIZE_MAX)
    if deflated:
        protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
    protocol.receive_data(data)
    messages: list[Message] = []
    collected: list[Frame] = []
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        opcode = Opcode(event.opcode)
        if opcode in (PING, PONG, CLOSE):
            messages.append((opcode, bytes(event.data)))
            continue
        collected.append(event)
        if not event.fin:
            continue
        payload = b"".join(bytes(part.data) for part in collected)
        opcode = Opcode(collected[0].opcode)
        collected = []
        if opcode is BINARY:
            messages.append((BINARY, payload))
            continue
        # Text is checked by that package's next layer.
        try:
            messages.append((TEXT, payload.decode()))
        except UnicodeDecodeError:
            return messages, INVALID_PAYLOAD
    error = protocol.parser_exc
    if error is None:
        return messages, None
    # The RFCs leave it open; to us damaged compression is a payload that can't be read.
    if isinstance(error, ProtocolError) and str(error) == "decompression failed":
        return messages, INVALID_PAYLOAD
    assert protocol.close_sent is not None
    return messages, int(protocol.close_sent.code)


masks = st.binary(min_size=4, max_size=4)
texts = st.one_of(
    st.text(max_size=150), st.text("x€", min_size=100, max_size=420), st.just("y" * 130)
)


def masked(first: int, payload: bytes, key: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        header = bytes([first, 0x80 | length])
    else:
        header = bytes([first, 0xFE]) + struct.pack("!H", length)
    stretched = key * (length // 4 + 1)
    return header + key + bytes(a ^ b for a, b in zip(payload, stretched, strict=False))


@st.composite
def control_frames(draw: st.DrawFn) -> bytes:
    return masked(
        0x80 | draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), draw(masks)
    )


@st.composite
def messages(draw: st.DrawFn, deflated: bool) -> bytes:
    """A message in fragments, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts).encode() if opcode is TEXT else draw(st.binary(max_size=300))
    compressed = deflated and draw(st.booleans())
    if compressed:
        payload = deflate(payload)
    damaged = draw(st.integers(0, 20)) == 0
    if damaged:
        payload = draw(st.binary(max_size=30))  # text that may not be UTF-8, no compression at all
    # The package inflates fragment by fragment, and so may notice damage before a control frame
    # that we hand on.
    cuts_max = 0 if damaged and compressed else 3
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=cuts_max)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data = b""
    for index, part in enumerate(parts):
        first = 0x80 if index == len(parts) - 1 else 0
        first |= opcode if index == 0 else CONTINUATION
        first |= 0x40 if compressed and index == 0 else 0
        if index:
            data += b"".join(draw(st.lists(control_frames(), max_size=2)))
        data += masked(first, part, draw(masks))
    return data


ENDINGS = [
    b"",
    *PROTOCOL_ERRORS.values(),
    *INVALID_PAYLOADS.values(),
    frame(TEXT, b"x" * (SIZE_MAX + 1)),
    frame(BINARY, b"x" * SIZE_MAX, fin=False) + frame(CONTINUATION, b"x"),
    frame(CLOSE, close_payload(1000)) + frame(TEXT, b"later"),
    frame(CLOSE),
]
# The package takes a length that isn't in its shortest form, and reads frames to their end before
# it looks at what they are.
LENIENT = {data for name, data in PROTOCOL_ERRORS.items() if "length in" in name}


@st.composite
def streams(draw: st.DrawFn, deflated: bool) -> bytes:
    """Whole messages, and at the end perhaps something that isn't right."""
    parts = draw(st.lists(st.one_of(messages(deflated), control_frames()), max_size=5))
    return b"".join(parts) + draw(
        st.sampled_from([ending for ending in ENDINGS if ending not in LENIENT])
    )


@given(st.booleans().flatmap(lambda deflated: st.tuples(st.just(deflated), streams(deflated))))
@settings(REPEATABLE, max_examples=400)
def test_we_read_what_the_websockets_package_reads(case: tuple[bool, bytes]) -> None:
    deflated, data = case
    reader = FrameReader(SIZE_MAX, deflated)

    received = reader.feed(data)

    expected, code = by_websockets(data, deflated)
    assert received == expected
    assert (None if reader.failure is None else reader.failure.code) == code


def pieces(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    start = 0
    for size in sizes:
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size
    if start < len(data):
        yield data[start:]


def read_in_pieces(
    parts: Iterable[bytes], deflated: bool
) -> tuple[list[Message], frames.FrameFailure | None]:
    reader = FrameReader(SIZE_MAX, deflated)
    received: list[Message] = []
    for part in parts:
        received += reader.feed(part)
    return received, reader.failure


@given(
    st.one_of(streams(True), streams(True).map(lambda data: data[: len(data) // 2])),
    st.lists(st.integers(1, 200), max_size=20),
)
@example(frame(TEXT, b"x" * 300) + frame(TEXT, b"y"), [2, 1, 1, 4, 299])
@example(frame(TEXT, b"short") + frame(TEXT, b"x" * 200), [11, 2, 1])
@settings(REPEATABLE, max_examples=300)
def test_it_does_not_matter_how_the_bytes_are_cut(data: bytes, sizes: Sequence[int]) -> None:
    at_once = read_in_pieces([data], True)

    assert read_in_pieces(pieces(data, sizes), True) == at_once
    assert read_in_pieces(pieces(data, [1] * len(data)), True) == at_once


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
@example([b"\x81\x80\x00\x00\x00\x00"], False)
@settings(REPEATABLE, max_examples=500)
def test_garbage_is_read_or_refused_with_a_documented_code(
    parts: Sequence[bytes], deflated: bool
) -> None:
    reader = FrameReader(SIZE_MAX, deflated)
    for part in parts:
        for opcode, payload in reader.feed(part):
            assert isinstance(payload, str if opcode is TEXT else bytes)
            assert len(payload) <= SIZE_MAX

    if reader.failure is not None:
        assert reader.failure.code in (PROTOCOL_ERROR, INVALID_PAYLOAD, MESSAGE_TOO_BIG)


@given(streams(True), st.integers(0, 2**32), st.integers(0, 255))
@settings(REPEATABLE, max_examples=300)
def test_one_wrong_byte_never_makes_the_reader_raise(data: bytes, place: int, byte: int) -> None:
    damaged = bytearray(data or b"\x00")
    damaged[place % len(damaged)] = byte

    at_once = read_in_pieces([bytes(damaged)], True)

    assert read_in_pieces(pieces(bytes(damaged), [1] * len(damaged)), True) == at_once


# --- frames out -------------------------------------------------------------------------------


def read_by_client(data: bytes, deflated: bool = False) -> list[tuple[int, bytes]]:
    """What a client with the `websockets` package gets."""
    protocol = Protocol(CLIENT, max_size=None)
    if deflated:
        protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    received = []
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        assert event.fin
        received.append((int(event.opcode), bytes(event.data)))
    return received


def deflate_like_us(payload: bytes) -> bytes:
    compressor = zlib.compressobj(level=1, wbits=-15)
    compressed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert compressed.endswith(b"\x00\x00\xff\xff")
    return compressed[:-4]


SIZES = [0, 1, 125, 126, 127, 65535, 65536, 200_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_text_frame_is_read_by_others(size: int) -> None:
    payload = b"x" * size

    assert read_by_client(frames.text_frame(payload)) == [(TEXT, payload)]
    assert frames.text_frame(payload) == Frame(Opcodes.TEXT, payload).serialize(mask=False)


@pytest.mark.parametrize("size", SIZES)
def test_a_compressed_text_frame_is_read_by_others(size: int) -> None:
    payload = random.Random(size).randbytes(size // 2).hex().encode()

    data = frames.deflated_text_frame(payload)

    assert read_by_client(data, deflated=True) == [(TEXT, payload)]
    content = deflate_like_us(payload)
    compressed = Frame(Opcodes.TEXT, content).serialize(mask=False)
    assert data == bytes([compressed[0] | 0x40]) + compressed[1:]
    # No context is taken over: the same bytes can be anybody's first or hundredth frame.
    assert read_by_client(data + data, deflated=True) == [(TEXT, payload)] * 2


def test_compression_is_worth_it() -> None:
    payload = b'{"push":{"channel":"chat:lobby","pub":{"data":{"text":"hello"}}}}' * 10

    assert len(frames.deflated_text_frame(payload)) < len(payload) / 4


def test_control_frames_are_read_by_others() -> None:
    assert read_by_client(frames.PING_FRAME) == [(PING, b"")]
    assert read_by_client(frames.pong_frame(b"x" * 125)) == [(PONG, b"x" * 125)]
    assert read_by_client(frames.close_frame(3001, b"why")) == [
        (CLOSE, close_payload(3001, b"why"))
    ]
    assert read_by_client(frames.close_frame(NORMAL_CLOSURE)) == [(CLOSE, close_payload(1000))]
    assert Frame(Opcodes.PING, b"").serialize(mask=False) == frames.PING_FRAME


def test_a_close_frame_takes_a_reason_of_123_bytes_and_no_more() -> None:
    assert read_by_client(frames.close_frame(3001, b"x" * 123)) != []
    with pytest.raises(AssertionError):
        frames.close_frame(3001, b"x" * 124)
