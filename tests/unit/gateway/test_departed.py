"""A socket that nobody speaks over: ignored, waited for, and cut when that takes too long."""

import asyncio
from typing import cast

from gateway.departed import Departed
from gateway.link import Link
from gateway.protocol.codes import CONNECTION_CLOSED
from gateway.wheel import TICK, Wheel
from tests.support.fake_loop import FakeLoop
from tests.support.transport import RecordingTransport
from tests.support.wire import BINARY, CLOSE, PING, PONG, TEXT, frame

DUE = 5.0


class Sockets:
    """Notes which sockets were closed, and with what code."""

    def __init__(self) -> None:
        self.lost: list[tuple[Link, int]] = []

    def socket_lost(self, link: Link, code: int) -> None:
        """See `departed.Sockets`."""
        self.lost.append((link, code))


class World:
    """A departed socket with its wheel."""

    def __init__(self, *, paused: bool = False) -> None:
        self.loop = FakeLoop()
        self.wheel = Wheel(cast(asyncio.AbstractEventLoop, self.loop))
        self.wheel.start()
        self.transport = RecordingTransport()
        self.link = Link(self.transport, 65536, False)
        self.transport.set_protocol(self.link)
        if paused:
            self.transport.pause_reading()
            self.transport.fill()
        self.sockets = Sockets()
        self.departed = Departed(self.sockets, self.wheel, self.link, self.loop.time() + DUE)


def test_what_still_comes_has_no_effect() -> None:
    world = World()
    for opcode in (TEXT, BINARY, PONG):
        world.link.data_received(frame(opcode, b"{}"))
    assert world.transport.take() == b""
    world.link.close(CONNECTION_CLOSED, None)
    world.transport.take()
    for opcode in (TEXT, BINARY, PING, PONG):
        world.link.data_received(frame(opcode, b"{}"))
    assert world.transport.take() == b""
    assert world.sockets.lost == []


def test_its_end_is_told_with_the_code_that_closed_it() -> None:
    world = World()
    world.link.close(CONNECTION_CLOSED, None)
    world.link.data_received(frame(CLOSE, (1000).to_bytes(2)))
    assert world.transport.closing
    world.transport.lose()
    assert world.sockets.lost == [(world.link, CONNECTION_CLOSED.code)]


def test_one_that_breaks_is_told_as_well() -> None:
    world = World()
    world.transport.lose()
    assert world.sockets.lost == [(world.link, 1006)]


def test_whoever_doesnt_answer_the_close_in_time_is_cut() -> None:
    world = World()
    world.link.close(CONNECTION_CLOSED, None)
    world.loop.advance(DUE - TICK)
    assert not world.transport.aborted
    world.loop.advance(2 * TICK)
    assert world.transport.aborted


def test_the_wheel_lets_it_go_when_it_is_lost() -> None:
    world = World()
    world.link.close(CONNECTION_CLOSED, None)
    world.transport.lose()
    world.loop.advance(2 * DUE)
    assert not world.transport.aborted
    assert world.departed.wheel_tick == 0


def test_it_goes_on_cutting_what_doesnt_end() -> None:
    world = World()
    world.loop.advance(2 * DUE)
    world.transport.aborted = False
    world.loop.advance(2 * TICK)
    assert world.transport.aborted


def test_a_stall_of_ours_is_no_delay_of_its_client() -> None:
    world = World()
    world.loop.advance(1.0)
    world.loop.stall(60.0)
    world.loop.advance(DUE - 1.0 - 2 * TICK)
    assert not world.transport.aborted
    world.loop.advance(4 * TICK)
    assert world.transport.aborted


def test_a_full_socket_is_read_again_or_its_close_would_never_be_seen() -> None:
    world = World(paused=True)
    assert world.transport.reading
    world.transport.drain()
    assert world.transport.reading


def test_one_that_fills_up_later_costs_nothing() -> None:
    world = World()
    world.transport.fill()
    world.transport.drain()
    assert world.transport.reading
    assert world.transport.take() == b""
