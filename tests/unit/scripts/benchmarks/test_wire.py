import pytest
from aiohttp._websocket.helpers import websocket_mask

from scripts.benchmarks import wire


def unmasked(frame: bytes, header_bytes: int) -> bytes:
    key = frame[header_bytes : header_bytes + 4]
    payload = bytearray(frame[header_bytes + 4 :])
    websocket_mask(key, payload)
    return bytes(payload)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x80"),
        (125, b"\x81\xfd"),
        (126, b"\x81\xfe\x00\x7e"),
        (65_535, b"\x81\xfe\xff\xff"),
        (65_536, b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_client_frames_are_masked_and_carry_their_length(size: int, header: bytes) -> None:
    payload = bytes(number % 251 for number in range(size))

    frame = wire.client_frame(payload)

    assert frame.startswith(header)
    assert unmasked(frame, len(header)) == payload


@pytest.mark.parametrize("size", [0, 125, 126, 65_536])
def test_server_frames_split_into_their_payloads(size: int) -> None:
    payloads = [b"a" * size, b"b"]

    frames = b"".join(map(wire.server_frame, payloads))

    assert wire.split_frames(frames) == (payloads, b"")


@pytest.mark.parametrize("size", [3, 126, 65_536])
def test_a_frame_that_is_cut_anywhere_is_left_over(size: int) -> None:
    whole, cut = wire.server_frame(b"whole"), wire.server_frame(b"c" * size)

    for length in {*range(min(len(cut), 20)), len(cut) - 1}:
        assert wire.split_frames(whole + cut[:length]) == ([b"whole"], cut[:length])


def test_anything_but_a_text_frame_is_an_error() -> None:
    close = b"\x88\x02\x0b\xb9"

    with pytest.raises(wire.UnexpectedFrame, match="0x88"):
        wire.split_frames(wire.server_frame(b"text") + close)


def test_the_top_offset_is_read_from_the_reply() -> None:
    assert wire.position_in(b'{"id":1,"history":{"offset":4711,"epoch":"x"}}') == 4711


def test_a_position_without_an_offset_is_zero() -> None:
    assert wire.position_in(b'{"id":1,"history":{"epoch":"x"}}') == 0


def test_publications_are_counted_over_all_payloads() -> None:
    push = wire.publication_push("live:a", b'"x"')

    assert wire.count_publications([push + b"\n" + push, b"{}", push]) == 3


@pytest.mark.parametrize(
    ("frame", "retry"),
    [
        (b"\x88\x1c\x0b\xc5" + b'{"reason":"x","retry":200}', 0.2),
        (b"\x88\x11\x0b\xc5" + b'{"reason":"bye"}' + b"\x81\x02{}", None),
        (b"\x88\x02\x0b\xc5", None),
        (b"\x88\x00", None),
        (b"\x82\x02\x0b\xc5", None),
    ],
    ids=["a moment", "none", "no reason", "no code", "no close frame"],
)
def test_a_close_frame_may_say_when_to_come_back(frame: bytes, retry: float | None) -> None:
    with pytest.raises(wire.UnexpectedFrame) as caught:
        wire.split_frames(frame)

    assert caught.value.retry == retry


def test_control_frames_are_masked_too() -> None:
    for frame, opcode in ((wire.close_frame(b"\x03\xe8"), 0x88), (wire.pong_frame(b"hi"), 0x8A)):
        assert frame[0] == opcode
        assert frame[1] == 0x80 | 2
    assert unmasked(wire.close_frame(b"\x03\xe8"), 2) == b"\x03\xe8"
