"""Both ends of the session layer, without a socket, and a network that a test moves by hand.

`Network` carries messages over lines, in order, until a line breaks; when each is delivered, or
whether ever, is the test's decision. `ClientSide` does what a client's shell does with the events
of its session, `ServerSide` what a server's does with the frames of its clients. Each notes what
its layer above was given to send, and what it received.

Payload says who sent it and its number, so that a frame that comes twice, late, or to somebody else
can't be taken for the right one. A session that is lost without need fails here, at once.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from gateway.protocol.client_policy import SessionPolicy
from gateway.protocol.client_session import (
    NEVER,
    Began,
    ClientSession,
    Dial,
    Drop,
    Lost,
    Write,
)
from gateway.protocol.client_states import ClientState
from gateway.protocol.codes import CONNECTION_CLOSED, close_reason
from gateway.protocol.health import Quality
from gateway.protocol.session import (
    Gone,
    Pressure,
    Resumed,
    Resumption,
    Session,
    SessionState,
    TailLimits,
)
from gateway.protocol.session_frames import (
    Counts,
    Leave,
    Open,
    Resume,
    ack,
    decode_client_frame,
    gone,
    is_session_frame,
    move,
    opened,
    ping,
    resumed,
)

LOST: Final = 1006

# Why a client may lose a session. Others would mean that one of the two broke the protocol.
_LOSSES: Final = {
    "too much is unacknowledged",
    "session unknown",
    "session overflow",
    "session fenced",
    "connection closed",
}
ACK_FRAMES: Final = 4


@dataclass(frozen=True, slots=True)
class Close:
    """The last that comes on a line: a close frame, or (1006) the end of the stream without one."""

    code: int
    reason: str = ""


Message = bytes | Close


@dataclass(slots=True)
class Line:
    """A socket's two directions, each with what is under way."""

    to_server: deque[Message] = field(default_factory=deque)
    to_client: deque[Message] = field(default_factory=deque)
    accepted: bool = False
    accepted_at: float = 0.0
    is_silent: bool = False  # what is put in vanishes, and nobody is told
    ended: set[str] = field(default_factory=set)

    def put(self, way: str, message: Message) -> None:
        """Send something; behind an end nothing is sent any more."""
        if way in self.ended:
            return
        if isinstance(message, Close):
            self.ended.add(way)
        if not self.is_silent:
            self.queue(way).append(message)

    def queue(self, way: str) -> deque[Message]:
        """What is under way in one direction."""
        return self.to_server if way == "to_server" else self.to_client


WAYS: Final = ("to_server", "to_client")


class Network:
    """All lines that were ever dialled, by number."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}

    @property
    def dialled(self) -> list[int]:
        """Lines that are neither accepted nor refused."""
        return [number for number, line in self.lines.items() if not line.accepted]

    @property
    def carrying(self) -> list[tuple[int, str]]:
        """Where something is under way."""
        return [
            (number, way)
            for number, line in self.lines.items()
            for way in WAYS
            if line.accepted and line.queue(way)
        ]

    def cut(self, number: int, to_server: int, to_client: int) -> None:
        """Break a line: so many of the messages under way arrive, and then both ends see it."""
        line = self.lines[number]
        for way, keep in (("to_server", to_server), ("to_client", to_client)):
            queue = line.queue(way)
            while len(queue) > keep:
                queue.pop()
            line.ended.discard(way)
            line.put(way, Close(LOST))

    def silence(self, number: int) -> None:
        """Lose what is under way and all that will be put in, without a word to anybody."""
        line = self.lines[number]
        line.is_silent = True
        line.to_server.clear()
        line.to_client.clear()


@dataclass(slots=True)
class Story:
    """What the layer above one end of one session sent and received."""

    name: str
    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    def next_frame(self) -> bytes:
        """Something new to send."""
        frame = b'{"from":"%b","n":%d}' % (self.name.encode(), len(self.sent) + 1)
        self.sent.append(frame)
        return frame


class ClientSide:
    """A client session, its lines, and one story for each session that it began."""

    def __init__(self, network: Network, policy: SessionPolicy, now: float) -> None:
        self.session = ClientSession(policy)
        self.network = network
        self.now = now
        self.stories: list[Story] = []
        self.story: Story | None = None  # the one that goes on: begun, and not lost
        self.losses: list[Lost] = []
        self._was_opening = False
        self.session.start(now)
        self._work()

    def send(self) -> None:
        """Let the layer above send something new."""
        assert self.story is not None, "between Began and Lost"
        frame = self.story.next_frame()
        if self.session.send(frame, self.now):
            self.network.lines[self.session.line].put("to_server", frame)
        self._work()

    def connected(self, line: int) -> None:
        """A line was accepted."""
        self.session.connected(line, self.now)
        self._work()

    def receive(self, line: int, message: Message) -> None:
        """Something arrived."""
        if isinstance(message, Close):
            self.session.closed(line, self.now, message.code, message.reason)
        elif self.session.message(line, message, self.now):
            assert self.story is not None, "payload belongs to a session"
            self.story.received.append(message)
        self._work()

    def pass_time(self, now: float) -> None:
        """It is later now."""
        self.now = now
        self.session.tick(now)
        self._work()

    def leave(self) -> None:
        """Say goodbye."""
        self.session.leave()
        self.story = None
        self._work()

    def _work(self) -> None:
        for event in self.session.take_events():
            if isinstance(event, Dial):
                assert event.line not in self.network.lines
                self.network.lines[event.line] = Line()
            elif isinstance(event, Write):
                self.network.lines[event.line].put("to_server", event.message)
            elif isinstance(event, Drop):
                code = 1000 if event.leaving else LOST
                self.network.lines[event.line].put("to_server", Close(code))
            elif isinstance(event, Began):
                assert self.story is None, "one session after the other"
                self.story = Story(f"client {len(self.stories)}")
                self.stories.append(self.story)
            else:
                assert self.story is not None, "what is lost was begun"
                self.story = None
                self.losses.append(event)
                assert self._was_opening or event.reason in _LOSSES
        self._was_opening = self.session.state is ClientState.OPENING


@dataclass(slots=True)
class Peer:
    """One session on the server, and the line that it has."""

    token: str
    session: Session
    story: Story
    line: int | None
    unsaid: int = 0  # payload frames processed since its client was told
    newest_line: int = 0  # on which it was resumed
    is_doomed: bool = False  # its client may lose it

    @property
    def is_attached(self) -> bool:
        """Whether it has a line."""
        return self.session.state is SessionState.ATTACHED


class ServerSide:
    """A server's sessions."""

    def __init__(
        self,
        network: Network,
        now: float,
        *,
        limits: TailLimits,
        ping: float = 25.0,
        retention: float = 60.0,
        stable: float = 30.0,
    ) -> None:
        self.network = network
        self.now = now
        self.limits = limits
        self._ping = ping
        self._retention = retention
        self._stable = stable
        self.peers: dict[str, Peer] = {}  # those that live, by token
        self.all_peers: list[Peer] = []
        self.of_line: dict[int, Peer] = {}
        self.usurped = 0  # sessions that a straggler took over, after so long that nothing tells

    # --- what the test lets happen ----------------------------------------------------------------

    def send(self, peer: Peer, batches: list[int]) -> None:
        """Let the layer above send, so many new frames in each write."""
        for count in batches:
            frames = [peer.story.next_frame() for _ in range(count)]
            pressure = peer.session.sent_frames(b"\0".join(frames), count, self.limits)
            for frame in frames:
                self._write(peer, frame)
            if pressure is Pressure.ASK and peer.is_attached:
                self.ping(peer)
            elif pressure is Pressure.DROPPED:
                peer.is_doomed = True

    def ping(self, peer: Peer) -> None:
        """Ask how its client is."""
        session = peer.session
        self._write(peer, ping(session.received, session.sent, 0.02, Quality.GOOD, self._retention))
        peer.unsaid = 0

    def move(self, peer: Peer, retry: float) -> None:
        """Ask a client to come back on another line."""
        self._write(peer, move(retry, 30.0))

    def close(self, peer: Peer, code: int, retry_ms: int | None) -> None:
        """End a session's line, as at a shutdown or when no pong came, and keep the session."""
        line = peer.line
        assert line is not None, "attached"
        reason = close_reason("x", reconnect=True, retry_ms=retry_ms).decode()
        self.network.lines[line].put("to_client", Close(code, reason))
        self._line_lost(line)

    def pass_time(self, now: float) -> None:
        """It is later now."""
        self.now = now
        for peer in list(self.peers.values()):
            if not peer.is_attached and now >= peer.session.expires_at:
                peer.session.expire()
                del self.peers[peer.token]

    def restart(self, *, saving: bool) -> None:
        """Another process takes over: lines end with this one, sessions are saved or forgotten."""
        for number, line in self.network.lines.items():
            if line.accepted:
                self.network.cut(number, 0, len(line.to_client))
                line.to_server.clear()
                self._line_lost(number)
        if not saving:
            self.peers.clear()
        for peer in self.peers.values():
            until = peer.session.expires_at
            peer.session = Session.restored(peer.session.save(), until)

    # --- what arrives -----------------------------------------------------------------------------

    def receive(self, line: int, message: Message) -> None:
        """Something arrived on a line."""
        peer = self.of_line.get(line)
        if isinstance(message, Close):
            if peer is not None and message.code == 1000:
                self._end(peer, leaving=True)
            else:
                self._line_lost(line)
            self.network.lines[line].put("to_client", Close(message.code))
            return
        if "to_client" in self.network.lines[line].ended:
            return  # what follows our close frame isn't looked at
        if not is_session_frame(message.decode()):
            assert peer is not None, "payload belongs to a session"
            peer.story.received.append(message)
            peer.session.received_frame()
            peer.unsaid += 1
            if peer.unsaid >= ACK_FRAMES:
                peer.unsaid = 0
                self._write(peer, ack(peer.session.received))
            return
        frame = decode_client_frame(message.decode())
        if isinstance(frame, Open):
            assert peer is None, "one session at a time"
            self._open(line)
        elif isinstance(frame, Resume):
            assert peer is None, "one session at a time"
            self._resume(line, frame)
        else:
            assert peer is not None, "a session frame belongs to a session"
            if isinstance(frame, Leave):
                self._end(peer, leaving=True)
            elif isinstance(frame, Counts):
                assert frame.sent == peer.session.received
                peer.session.acknowledge(frame.received)
            else:
                peer.session.acknowledge(frame)

    def _open(self, line: int) -> None:
        number = len(self.all_peers)
        peer = Peer(f"token {number}", Session(), Story(f"server {number}"), line)
        self.all_peers.append(peer)
        self.peers[peer.token] = peer
        self.of_line[line] = peer
        self._write(peer, opened(peer.token, 1, self._ping, self._retention, self._stable))

    def _resume(self, line: int, frame: Resume) -> None:
        wire = self.network.lines[line]
        peer = self.peers.get(frame.token)
        if peer is None:
            wire.put("to_client", gone(Gone.UNKNOWN))
            return
        wish = Resumption(frame.received, frame.attempt)
        outcome = peer.session.resume(wish, self.now, self._stable)
        is_straggler = line < peer.newest_line
        if not isinstance(outcome, Resumed):
            wire.put("to_client", gone(outcome))
            if outcome is Gone.FENCED:
                assert is_straggler, "no later attempt was resumed"
            else:
                # Nothing tells a straggler of so long ago from a client that lost its memory.
                assert peer.is_doomed or is_straggler, "its tail was never dropped"
                self._end(peer, leaving=False)
            return
        if is_straggler:
            # Attempts are counted anew after so long, which it must have been under way.
            assert self.now >= wire.accepted_at + self._stable, "a straggler has no effect"
            peer.is_doomed = True
            self.usurped += 1
        peer.newest_line = max(line, peer.newest_line)
        if peer.line is not None:
            del self.of_line[peer.line]
            former = self.network.lines[peer.line]
            former.put("to_client", gone(Gone.FENCED))
            former.put("to_client", Close(CONNECTION_CLOSED.code, CONNECTION_CLOSED.reason))
        peer.line = line
        self.of_line[line] = peer
        peer.unsaid = 0
        self._write(
            peer,
            resumed(
                outcome.generation,
                outcome.received,
                outcome.count,
                self._retention,
                self._stable,
            ),
        )
        replay = [frame for entry in outcome.replay for frame in entry.frames.split(b"\0")]
        assert len(replay) - outcome.skip == outcome.count
        for again in replay[outcome.skip :]:
            self._write(peer, again)

    def _write(self, peer: Peer, message: bytes) -> None:
        if peer.line is not None:
            self.network.lines[peer.line].put("to_client", message)

    def _line_lost(self, line: int) -> None:
        peer = self.of_line.pop(line, None)
        if peer is None:
            return
        peer.line = None
        if peer.session.received:
            peer.session.lose(self.now, self._retention)
        else:
            # There is nothing to keep: its client has not even said who it is.
            peer.session.break_off()
            del self.peers[peer.token]

    def _end(self, peer: Peer, *, leaving: bool) -> None:
        if leaving:
            peer.session.leave()
        else:
            peer.session.break_off()
        if peer.line is not None:
            del self.of_line[peer.line]
            wire = self.network.lines[peer.line]
            wire.put("to_client", Close(CONNECTION_CLOSED.code, CONNECTION_CLOSED.reason))
            peer.line = None
        del self.peers[peer.token]


class SessionPair:
    """A client, a server and the network between them."""

    def __init__(self, policy: SessionPolicy, limits: TailLimits) -> None:
        self.now = 1000.0
        self.network = Network()
        self.client = ClientSide(self.network, policy, self.now)
        self.server = ServerSide(self.network, self.now, limits=limits)

    def accept(self, number: int) -> None:
        """Let an attempt to connect succeed."""
        line = self.network.lines[number]
        line.accepted, line.accepted_at = True, self.now
        self.client.connected(number)

    def refuse(self, number: int) -> None:
        """Let an attempt to connect fail."""
        del self.network.lines[number]
        self.client.receive(number, Close(LOST))

    def deliver(self, number: int, way: str, count: int = 1) -> None:
        """Let some messages arrive."""
        queue = self.network.lines[number].queue(way)
        receive = self.server.receive if way == "to_server" else self.client.receive
        for _ in range(min(count, len(queue))):
            receive(number, queue.popleft())

    def pass_time(self, seconds: float) -> None:
        """Let time pass for both."""
        self.now += seconds
        self.server.pass_time(self.now)
        self.client.pass_time(self.now)

    def mate(self) -> Peer | None:
        """The server's end of the session that the client has, if both know of it."""
        return self.server.peers.get(self.client.session._token)

    def come_to_rest(self) -> None:
        """Let the network be good, and everything arrive that is going to.

        Raises AssertionError when it never comes to rest.
        """
        for _ in range(1000):
            for number in self.network.dialled:
                self.accept(number)
            carrying = self.network.carrying
            for number, way in carrying:
                self.deliver(number, way, len(self.network.lines[number].queue(way)))
            if carrying:
                continue
            session = self.client.session
            if session.state is ClientState.ENDED:
                return
            mate = self.mate()
            line = self.network.lines.get(session.line)
            is_up = session.state is ClientState.LIVE and line is not None and not line.is_silent
            if is_up and mate is not None:
                if not session.unacknowledged and not mate.session.unacknowledged:
                    return
                self.server.ping(mate)
            else:
                assert session.next_deadline() < NEVER, "it waits for nothing"
                self.pass_time(max(0.0, session.next_deadline() - self.now))
        raise AssertionError("it never came to rest")
