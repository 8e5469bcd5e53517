"""Two sockets race for one session while a third breaks, in every order in which that can be."""

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.protocol.codes import CONNECTION_CLOSED
from gateway.protocol.session import Gone
from tests.support.session_bench import Bench, Socket, payload_frames

# What happens to each: the sockets of two attempts are opened, and later their `resume` arrives; a
# command is under way on the former socket, which then breaks; others publish.
EVENTS = {
    "first": ("dial", "arrive"),
    "second": ("dial", "arrive"),
    "former": ("command", "break"),
    "others": ("publish", "publish"),
}
ORDERS = 2520  # 8! / (2! · 2! · 2! · 2!)


def orders(left: dict[str, int]) -> Iterator[list[str]]:
    """All ways to interleave so many events of each."""
    if not any(left.values()):
        yield []
    for name, count in left.items():
        if count:
            for rest in orders({**left, name: count - 1}):
                yield [name, *rest]


class Lost(Exception):
    """The session is gone."""

    def __init__(self, reason: Gone) -> None:
        super().__init__(reason)
        self.reason = reason


class Race:
    """One client with its three sockets, and what it has heard: payload frames by their numbers."""

    def __init__(self, bench: Bench, number: int, *, counts_attempts: bool) -> None:
        self.bench = bench
        self.channel = f"bare:{number}"
        self.witness = bench.stock(self.channel)
        self.former, self.token = bench.session(self.channel)
        self.heard: dict[int, Any] = {}
        self.count = self.former.received  # of what came so far
        self.published: list[Any] = []
        self._counts_attempts = counts_attempts
        self.attempts: dict[str, int] = {}
        self.sockets: dict[str, Socket] = {}
        self.wishes: dict[str, int] = {}
        self.resumed: dict[str, dict[str, Any]] = {}
        self._done = dict.fromkeys(EVENTS, 0)

    def happen(self, name: str) -> None:
        """Let the next thing happen to somebody."""
        event = EVENTS[name][self._done[name]]
        self._done[name] += 1
        if event == "dial":
            self.sockets[name] = self.bench.socket()
            self.attempts[name] = len(self.attempts) + 1 if self._counts_attempts else 0
            self.wishes[name] = self.count
        elif event == "arrive":
            wish = {
                "token": self.token,
                "received": self.wishes[name],
                "attempt": self.attempts[name],
            }
            self.sockets[name].session(resume=wish)
        elif event == "command":
            self.former.say(_publish(self.channel))
        elif event == "break":
            self.former.cut()
        else:
            self.published.append(len(self.published))
            self.bench.publish(self.channel, self.published[-1])
        self.listen()

    def listen(self) -> None:
        """Take what came. A frame that comes twice must be the same."""
        for frame in payload_frames(self.former.take()):
            self.count += 1
            self.heard[self.count] = frame
        for name, socket in self.sockets.items():
            for message in socket.take():
                if "session" in message:
                    if "resumed" in message["session"]:
                        self.resumed[name] = message["session"]["resumed"]
                        assert socket.received in (0, self.resumed[name]["replay"])
                    continue
                assert name in self.resumed, "nothing comes before the answer"
                self.wishes[name] += 1
                assert self.heard.setdefault(self.wishes[name], message) == message

    def finish(self) -> None:
        """Do what a client does in the end, and look whether each side has everything once."""
        bench = self.bench
        connection = bench.sessions.find(self.token)
        if isinstance(connection, Gone):
            raise Lost(connection)
        alive = [name for name, one in self.sockets.items() if one.link.owner is connection]
        assert alive == [self.winner()]
        socket = self.sockets[alive[0]]
        assert self.former.is_gone or self.former.closed == CONNECTION_CLOSED.code
        if self.resumed[alive[0]]["received"] == 2:  # the command was lost with the former socket
            socket.say(_publish(self.channel))
        bench.publish(self.channel, "last")
        self.listen()
        numbers = sorted(self.heard)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        frames = [self.heard[number] for number in numbers]
        data = [frame["push"]["pub"]["data"] for frame in frames if "push" in frame]
        assert [one for one in data if one != "mine"] == [*self.published, "last"]
        assert data.count("mine") == 1
        assert [frame["id"] for frame in frames if "id" in frame] == [7]
        seen = [frame["push"]["pub"]["data"] for frame in self.witness.take()]
        assert seen == data
        assert connection.session.received == 3

    def winner(self) -> str:
        """Who has the session in the end: the later attempt, by its number if it has one."""
        if self._counts_attempts:
            return max(self.attempts, key=self.attempts.__getitem__)
        return self._last

    _last = ""

    def run(self, order: Sequence[str]) -> None:
        """All of it."""
        arrivals = [
            name
            for index, name in enumerate(order)
            if name in ("first", "second") and name in order[:index]
        ]
        self._last = arrivals[-1]
        for name in order:
            self.happen(name)
        self.finish()
        self.part()

    def part(self) -> None:
        """Let everybody go."""
        for socket in (self.former, self.witness, *self.sockets.values()):
            if not socket.is_gone:
                if socket.closed is not None:
                    socket.answer_close()
                else:
                    socket.close()


def _publish(channel: str) -> object:
    return {"id": 7, "publish": {"channel": channel, "data": "mine"}}


def all_orders() -> list[list[str]]:
    every = list(orders({name: len(events) for name, events in EVENTS.items()}))
    assert len(every) == ORDERS
    return every


def test_each_side_has_everything_once_whoever_comes_first() -> None:
    bench = Bench(ping_interval=0.0)
    for number, order in enumerate(all_orders()):
        Race(bench, number, counts_attempts=True).run(order)
        bench.loop.pass_time(0.5)
    bench.loop.pass_time(200.0)
    assert bench.holds() == {}


def test_who_doesnt_count_attempts_may_lose_the_session_but_nothing_in_silence() -> None:
    """The one that is overtaken can't be told from a client that forgot what it had."""
    bench = Bench(ping_interval=0.0)
    lost: list[Gone] = []
    every = all_orders()
    for number, order in enumerate(every[::3]):
        race = Race(bench, number, counts_attempts=False)
        try:
            race.run(order)
        except Lost as loss:
            lost.append(loss.reason)
            race.part()
        bench.loop.pass_time(0.5)
    assert set(lost) == {Gone.OVERFLOW}
    assert len(lost) < len(every[::3]) / 4
    bench.loop.pass_time(200.0)
    assert bench.holds() == {}
