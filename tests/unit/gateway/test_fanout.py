"""A turn of the loop costs one write for each subscriber, and each join and compression once."""

import zlib
from collections.abc import Callable

import pytest

from gateway.channel import Audience, Piece, Recorder, Sink
from gateway.fanout import FanOut
from gateway.protocol.frames import deflated_text_frame, text_frame
from metrics.instruments import REGISTRY
from tests.support.fake_loop import FakeLoop

COMPRESSION_MIN_BYTES = 100
SHORT = b'{"push":"short"}'
LONG = b'{"push":"' + b"long " * 50 + b'"}'
RSV1 = 0x40  # marks a compressed frame (RFC 7692, 6)


class Recipient:
    """Notes what is written to it. `then` is called with each write."""

    def __init__(self, *, deflate: bool = False, then: Callable[[], object] = lambda: None) -> None:
        self.deflate = deflate
        self.paused = False
        self.then = then
        self.writes: list[bytes] = []

    @property
    def sink(self) -> Sink:
        return self._write

    @property
    def record(self) -> Recorder | None:
        return None

    def position_lost(self, channel: str) -> bool:
        raise AssertionError(f"writing ended the subscription to {channel}")

    def _write(self, frames: bytes) -> None:
        self.writes.append(frames)
        self.then()


class Recorded(Recipient):
    """Notes what is written to it as a session does: with the number of frames."""

    def __init__(self, *, deflate: bool = False, then: Callable[[], object] = lambda: None) -> None:
        super().__init__(deflate=deflate, then=then)
        self.counts: list[int] = []

    @property
    def sink(self) -> Sink:
        raise AssertionError("a session was written to past its recorder")

    @property
    def record(self) -> Recorder:
        return self._record

    def _record(self, frames: bytes, count: int) -> None:
        self.counts.append(count)
        self._write(frames)


def audience(*members: Recipient) -> Audience:
    made = Audience()
    for member in members:
        made.add(member)
    return made


def frames(*pushes: bytes) -> bytes:
    return b"".join(map(text_frame, pushes))


def fail() -> None:
    raise ConnectionError("the socket is gone")


def sample(name: str) -> float:
    value = REGISTRY.get_sample_value(f"capegate_{name}")
    assert value is not None, name
    return value


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def out(loop: FakeLoop) -> FanOut:
    return FanOut(loop, COMPRESSION_MIN_BYTES)


def test_ten_pushes_of_a_turn_are_one_write_for_each_subscriber(
    out: FanOut, loop: FakeLoop
) -> None:
    first, second = Recipient(), Recipient()
    everybody = audience(first, second)
    pushes = [b'{"push":%d}' % number for number in range(10)]

    for push in pushes:
        out.append(everybody, push)
    assert first.writes == []
    loop.turn()

    assert first.writes == second.writes == [frames(*pushes)]
    assert loop.idle


def test_frames_are_pending_until_they_are_written(out: FanOut, loop: FakeLoop) -> None:
    pending = [out.has_pending]
    out.append(audience(Recipient()), SHORT)
    pending.append(out.has_pending)
    loop.turn()
    pending.append(out.has_pending)

    assert pending == [False, True, False]


def test_frames_are_joined_once_for_the_whole_audience(out: FanOut, loop: FakeLoop) -> None:
    first, second = Recipient(), Recipient()
    everybody = audience(first, second)

    out.append(everybody, SHORT)
    out.append(everybody, LONG)
    loop.turn()

    assert first.writes[0] is second.writes[0]


def test_each_turn_writes_only_its_own_pushes(out: FanOut, loop: FakeLoop) -> None:
    recipient = Recipient()
    everybody = audience(recipient)

    out.append(everybody, SHORT)
    loop.turn()
    out.append(everybody, LONG)
    loop.turn()

    assert recipient.writes == [frames(SHORT), frames(LONG)]


def test_several_audiences_of_a_turn_are_one_write_for_each_subscriber(
    out: FanOut, loop: FakeLoop
) -> None:
    everywhere, alone, outside = Recipient(), Recipient(), Recipient()
    channels = [audience(everywhere), audience(everywhere, alone), audience(everywhere)]
    audience(outside)

    for number, channel in enumerate(channels):
        out.append(channel, b'{"channel":%d}' % number)
    out.append(channels[0], SHORT)
    loop.turn()

    assert everywhere.writes == [
        frames(b'{"channel":0}', SHORT, b'{"channel":1}', b'{"channel":2}')
    ]
    assert alone.writes == [frames(b'{"channel":1}')]
    assert outside.writes == []


def test_the_same_set_of_channels_is_joined_once_for_all_who_are_in_it(
    out: FanOut, loop: FakeLoop
) -> None:
    in_all = [Recipient() for _ in range(5)]
    in_two = [Recipient() for _ in range(5)]
    channels = [audience(*in_all, *in_two), audience(*in_all, *in_two), audience(*in_all)]

    for number, channel in enumerate(channels):
        out.append(channel, b'{"channel":%d}' % number)
    loop.turn()

    assert len({id(recipient.writes[0]) for recipient in in_all}) == 1
    assert len({id(recipient.writes[0]) for recipient in in_two}) == 1
    assert in_all[0].writes == [frames(b'{"channel":0}', b'{"channel":1}', b'{"channel":2}')]
    assert in_two[0].writes == [frames(b'{"channel":0}', b'{"channel":1}')]


def test_a_push_is_compressed_once_for_all_who_negotiated_it(
    out: FanOut, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed: list[bytes] = []

    def counting(push: bytes) -> bytes:
        compressed.append(push)
        return deflated_text_frame(push)

    monkeypatch.setattr("gateway.fanout.deflated_text_frame", counting)
    plain = Recipient()
    deflating = [Recipient(deflate=True) for _ in range(5)]

    out.append(audience(plain, *deflating), LONG)
    loop.turn()

    assert compressed == [LONG]
    assert plain.writes == [frames(LONG)]
    assert len({id(recipient.writes[0]) for recipient in deflating}) == 1
    (frame,) = deflating[0].writes
    assert frame[0] & RSV1
    assert len(frame) < len(LONG)
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame[2:]) == LONG


def test_nothing_is_compressed_for_nobody(
    out: FanOut, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.fanout.deflated_text_frame", lambda push: fail())
    recipient = Recipient()

    out.append(audience(recipient), LONG)
    loop.turn()

    assert recipient.writes == [frames(LONG)]


def test_short_pushes_stay_plain_among_compressed_ones(out: FanOut, loop: FakeLoop) -> None:
    recipient = Recipient(deflate=True)
    everybody = audience(recipient)
    too_short, long_enough = b"x" * (COMPRESSION_MIN_BYTES - 1), b"x" * COMPRESSION_MIN_BYTES

    for push in (SHORT, LONG, too_short, long_enough):
        out.append(everybody, push)
    loop.turn()

    assert recipient.writes == [
        text_frame(SHORT)
        + deflated_text_frame(LONG)
        + text_frame(too_short)
        + deflated_text_frame(long_enough)
    ]


@pytest.mark.parametrize("audiences", [1, 2])
def test_a_subscriber_that_cannot_be_written_to_costs_the_others_nothing(
    out: FanOut, loop: FakeLoop, audiences: int, caplog: pytest.LogCaptureFixture
) -> None:
    before, broken, after = Recipient(), Recipient(then=fail), Recipient()
    channels = [audience(before, broken, after) for _ in range(audiences)]

    for channel in channels:
        out.append(channel, SHORT)
    loop.turn()

    assert before.writes == after.writes == [frames(SHORT) * audiences]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    out.append(channels[0], LONG)
    loop.turn()
    assert after.writes[1:] == [frames(LONG)]


def test_every_push_is_counted_for_every_subscriber(out: FanOut, loop: FakeLoop) -> None:
    before = sample("deliveries_total")
    everybody = audience(Recipient(), Recipient(), Recipient(deflate=True))

    out.append(everybody, SHORT)
    out.append(everybody, LONG)
    loop.turn()
    assert sample("deliveries_total") == before + 6

    out.append(audience(Recipient(), Recipient()), SHORT)
    loop.turn()
    assert sample("deliveries_total") == before + 8


def test_what_others_wrote_meanwhile_is_counted_with_the_next_round(
    out: FanOut, loop: FakeLoop
) -> None:
    before = sample("deliveries_total")
    out.write(Recipient(), Piece([SHORT] * 7))

    out.append(audience(Recipient()), SHORT)
    loop.turn()
    out.append(audience(Recipient()), SHORT)
    loop.turn()

    assert sample("deliveries_total") == before + 9


def test_a_flush_inside_a_flush_is_ignored(out: FanOut, loop: FakeLoop) -> None:
    """A write that makes somebody publish must not overtake the writes of its own round."""
    order: list[str] = []

    def publish_more() -> None:
        order.append("first")
        if len(order) == 1:
            out.append(everybody, LONG)
            out.flush()

    first = Recipient(then=publish_more)
    second = Recipient(then=lambda: order.append("second"))
    everybody = audience(first, second)

    out.append(everybody, SHORT)
    loop.turn()

    assert order == ["first", "second"]
    assert first.writes == second.writes == [frames(SHORT)]
    assert out.has_pending
    loop.turn()
    assert first.writes == second.writes == [frames(SHORT), frames(LONG)]


def test_an_early_flush_leaves_nothing_for_the_end_of_the_turn(out: FanOut, loop: FakeLoop) -> None:
    recipient = Recipient()
    everybody = audience(recipient)

    out.append(everybody, SHORT)
    out.flush()
    assert recipient.writes == [frames(SHORT)]
    loop.turn()

    assert recipient.writes == [frames(SHORT)]


def test_what_comes_after_an_early_flush_is_written_at_the_end_of_the_turn(
    out: FanOut, loop: FakeLoop
) -> None:
    recipient = Recipient()
    everybody = audience(recipient)

    out.append(everybody, SHORT)
    out.flush()
    out.append(everybody, LONG)
    loop.turn()

    assert recipient.writes == [frames(SHORT), frames(LONG)]


def test_whoever_left_before_the_end_of_the_turn_gets_nothing(out: FanOut, loop: FakeLoop) -> None:
    staying, leaving = Recipient(), Recipient()
    everybody = audience(staying, leaving)

    out.append(everybody, SHORT)
    assert everybody.remove(leaving)
    loop.turn()

    assert leaving.writes == []
    assert staying.writes == [frames(SHORT)]


def test_an_audience_that_everybody_left_is_written_to_nobody(out: FanOut, loop: FakeLoop) -> None:
    recipient = Recipient()
    everybody = audience(recipient)

    out.append(everybody, SHORT)
    everybody.remove(recipient)
    loop.turn()
    everybody.add(recipient)
    out.append(everybody, LONG)
    loop.turn()

    assert recipient.writes == [frames(LONG)]


def test_the_time_from_a_commit_to_its_writes_is_measured_once(out: FanOut, loop: FakeLoop) -> None:
    count, total = (
        sample("commit_to_write_seconds_count"),
        sample("commit_to_write_seconds_sum"),
    )
    everybody = audience(Recipient())

    out.append(everybody, SHORT)
    out.note_commit()
    loop.stall(0.5)
    out.append(everybody, SHORT)
    out.note_commit()  # the oldest one counts
    loop.stall(1.5)
    loop.turn()
    out.append(everybody, SHORT)  # nothing committed
    loop.turn()

    assert sample("commit_to_write_seconds_count") == count + 1
    assert sample("commit_to_write_seconds_sum") == pytest.approx(total + 2.0)


def test_a_commit_for_nobody_is_not_measured(out: FanOut, loop: FakeLoop) -> None:
    count = sample("commit_to_write_seconds_count")

    out.note_commit()
    out.append(audience(Recipient()), SHORT)
    loop.turn()

    assert sample("commit_to_write_seconds_count") == count


# --- sessions ---------------------------------------------------------------------------------


def test_sessions_are_told_how_many_frames_they_get(out: FanOut, loop: FakeLoop) -> None:
    session = Recorded()
    everybody = audience(session)

    for _ in range(3):
        out.append(everybody, SHORT)
    loop.turn()
    out.append(everybody, LONG)
    loop.turn()

    assert session.writes == [frames(SHORT, SHORT, SHORT), frames(LONG)]
    assert session.counts == [3, 1]


def test_frames_of_sessions_are_those_of_everybody_and_never_compressed(
    out: FanOut, loop: FakeLoop
) -> None:
    plain, session = Recipient(), Recorded(deflate=True)
    out.append(audience(plain, session, Recipient(deflate=True)), LONG)
    loop.turn()

    assert session.writes == [frames(LONG)]
    assert session.writes[0] is plain.writes[0]


def test_several_audiences_of_a_turn_are_one_record_with_all_their_frames(
    out: FanOut, loop: FakeLoop
) -> None:
    everywhere = [Recorded() for _ in range(3)]
    alone = Recorded()
    stock = Recipient()
    channels = [audience(*everywhere), audience(*everywhere, alone, stock), audience(*everywhere)]

    out.append(channels[0], b'{"channel":0}')
    out.append(channels[0], SHORT)
    for number in (1, 2):
        out.append(channels[number], b'{"channel":%d}' % number)
    loop.turn()

    for session in everywhere:
        assert session.writes == [
            frames(b'{"channel":0}', SHORT, b'{"channel":1}', b'{"channel":2}')
        ]
        assert session.writes[0] is everywhere[0].writes[0]
        assert session.counts == [4]
    assert (alone.writes, alone.counts) == ([frames(b'{"channel":1}')], [1])
    assert stock.writes == [frames(b'{"channel":1}')]


@pytest.mark.parametrize("audiences", [1, 2])
def test_a_session_that_cannot_be_written_to_costs_the_others_nothing(
    out: FanOut, loop: FakeLoop, audiences: int, caplog: pytest.LogCaptureFixture
) -> None:
    members = before, broken, after = Recorded(), Recorded(then=fail), Recorded()
    for channel in [audience(*members) for _ in range(audiences)]:
        out.append(channel, SHORT)
    loop.turn()

    assert before.counts == after.counts == [audiences]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert broken.counts == [audiences]


def test_a_session_may_leave_while_it_is_written_to(out: FanOut, loop: FakeLoop) -> None:
    leaving = Recorded(then=lambda: everybody.remove(leaving))
    others = [Recorded(), Recorded()]
    everybody = audience(others[0], leaving, others[1])
    for _ in range(2):
        out.append(everybody, SHORT)
        loop.turn()

    assert leaving.counts == [1]
    assert [other.counts for other in others] == [[1, 1]] * 2


# --- one subscriber at a time -------------------------------------------------------------------


def test_a_piece_is_encoded_for_whoever_gets_it(
    out: FanOut, caplog: pytest.LogCaptureFixture
) -> None:
    piece = Piece([SHORT, LONG])
    plain, session, broken = Recipient(), Recorded(deflate=True), Recipient(then=fail)
    deflating = [Recipient(deflate=True) for _ in range(2)]
    for recipient in (plain, session, broken, *deflating):
        out.write(recipient, piece)

    assert plain.writes == session.writes == [frames(SHORT, LONG)]
    assert session.counts == [2]
    assert deflating[0].writes == [text_frame(SHORT) + deflated_text_frame(LONG)]
    assert deflating[0].writes[0] is deflating[1].writes[0]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# --- changing who is in the audiences -----------------------------------------------------------


def test_a_change_is_made_at_once_behind_what_is_pending(out: FanOut) -> None:
    recipient = Recipient()
    everybody = audience(recipient)
    out.append(everybody, SHORT)
    out.after_writing(lambda: everybody.remove(recipient))

    assert recipient.writes == [frames(SHORT)]
    assert len(everybody) == 0


def test_a_change_waits_for_the_end_of_the_loop_over_the_audience(
    out: FanOut, loop: FakeLoop
) -> None:
    order: list[str] = []

    def change_later() -> None:
        out.after_writing(change)
        order.append("first")

    def change() -> None:
        order.append("change")
        everybody.remove(first)
        out.append(everybody, LONG)
        out.after_writing(lambda: order.append("another"))

    first = Recipient(then=change_later)
    second = Recipient(then=lambda: order.append("second"))
    everybody = audience(first, second)
    out.append(everybody, SHORT)
    loop.turn()
    loop.turn()

    assert order == ["first", "second", "change", "second", "another"]
    assert first.writes == [frames(SHORT)]
    assert second.writes == [frames(SHORT), frames(LONG)]
