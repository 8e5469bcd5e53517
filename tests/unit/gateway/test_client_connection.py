"""What the Python client does when a server says this or that, word by word."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from gateway.client import (
    Closed,
    CommandError,
    ConnectionLost,
    DeclaredBackoff,
    Disconnected,
    Gateway,
    PublicationsLost,
    QueueLimits,
    State,
    StreamPosition,
    connect,
)
from gateway.protocol.codes import close_reason
from gateway.protocol.health import Quality
from gateway.protocol.session import Gone
from gateway.protocol.session_frames import ack, gone, move, opened, ping
from tests.support.scripted_gateway import ScriptedGateway, ScriptedLine
from tests.support.waiting import DEADLINE, until

BACKOFF = DeclaredBackoff(min=0.01, max=0.02, attempts=8, timeout=5.0)
Result = TypeVar("Result")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as server:
        yield server


@asynccontextmanager
async def begun(
    server: ScriptedGateway, token: Any = "t", backoff: DeclaredBackoff = BACKOFF
) -> AsyncIterator[tuple[Gateway, ScriptedLine]]:
    """A client that has connected, and the server's end of its line."""
    connecting = connect(server.url, token, backoff=backoff)
    entering = asyncio.ensure_future(connecting.__aenter__())
    line = await server.accept()
    await line.greet()
    gw = await entering
    try:
        yield gw, line
    finally:
        await connecting.__aexit__(None, None, None)


def start(coroutine: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    return asyncio.ensure_future(coroutine)


async def subscribed(
    gw: Gateway, line: ScriptedLine, channel: str = "c", **options: Any
) -> tuple[Any, Any]:
    """A subscription whose `subscribe` command was heard, and is yet to be answered."""
    messages = gw.subscribe(channel, **options)
    entering = start(messages.__aenter__())
    return messages, (entering, await line.hear("subscribe"))


POSITIONED = {"recoverable": True, "positioned": True, "epoch": "e"}


async def joined(gw: Gateway, line: ScriptedLine, **options: Any) -> Any:
    """A subscription to a channel with a log whose top is 10."""
    messages, (entering, command) = await subscribed(gw, line, **options)
    await line.answer(command, **POSITIONED, offset=10)
    await entering
    return messages


def publication(offset: int) -> dict[str, Any]:
    return {"data": offset, "offset": offset}


# --- connecting -----------------------------------------------------------------------------------


async def test_connect_comes_behind_open(server: ScriptedGateway) -> None:
    """Right behind it: the answer to one needs not be waited for with the other."""
    connecting = connect(server.url, "the token", name="a test")
    entering = start(connecting.__aenter__())
    line = await server.accept()
    backoff = (await line.hear("open"))["backoff"]
    command = await line.hear("connect")
    await line.say(opened("s", 1, 25.0, 60.0, 30.0))
    await line.answer(command, client="c1")
    gw = await entering

    assert (backoff["min"], backoff["max"], backoff["attempts"]) == (500, 20_000, 8)
    assert command["connect"] == {"token": "the token", "name": "a test"}
    assert (gw.state, gw.client_id) == (State.CONNECTED, "c1")
    await connecting.__aexit__(None, None, None)


async def test_leaving_is_said(server: ScriptedGateway) -> None:
    async with begun(server) as (_, line):
        pass

    assert await line.hear("leave") == {}
    assert await line.hear_end() == 1000


async def test_a_refusal_says_when_to_come_back(server: ScriptedGateway) -> None:
    server.refuse_next(503, Retry_After="1")
    loop = asyncio.get_running_loop()
    began = loop.time()
    connecting = connect(server.url)
    entering = start(connecting.__aenter__())
    line = await server.accept()

    assert loop.time() - began >= 1.0
    await line.greet()
    await entering
    await connecting.__aexit__(None, None, None)


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2015 07:28:00 GMT", "-1", "1e3"])
async def test_a_refusal_that_says_it_otherwise_is_one_of_many(
    server: ScriptedGateway, retry_after: str
) -> None:
    server.refuse_next(429, Retry_After=retry_after)
    async with begun(server):
        assert server.attempts == 2


async def test_a_status_that_means_a_mistake_ends_only_the_first_connect(
    server: ScriptedGateway,
) -> None:
    """Later it may come from a proxy whose servers are being replaced."""
    async with begun(server) as (gw, line):
        for _ in range(3):
            server.refuse_next(404)
        line.abort()
        again = await server.accept()
        await again.resume_session(1)
        await gw.wait_for(State.CONNECTED)

        assert server.attempts == 5


async def test_a_temporary_refusal_of_connect_is_tried_again(server: ScriptedGateway) -> None:
    connecting = connect(server.url, backoff=BACKOFF)
    entering = start(connecting.__aenter__())
    line = await server.accept()
    await line.open_session()
    await line.refuse(await line.hear("connect"), 100, temporary=True)
    assert await line.hear_end() == 1000
    await (await server.accept()).greet()
    await entering
    await connecting.__aexit__(None, None, None)


async def test_a_server_that_says_nothing_is_given_up(server: ScriptedGateway) -> None:
    impatient = DeclaredBackoff(min=0.01, max=0.02, timeout=0.2)
    connecting = connect(server.url, backoff=impatient)
    entering = start(connecting.__aenter__())
    silent = await server.accept()
    await silent.hear("open")
    await silent.hear("connect")
    assert await silent.hear_end() == 3012  # which would leave a session alone
    await (await server.accept()).greet()
    await entering
    await connecting.__aexit__(None, None, None)


async def test_a_final_close_is_the_end(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        calling, publishing = start(gw.rpc("x")), start(gw.publish("c", 1))
        await line.hear("rpc")
        await line.hear("publish")
        await line.close(3503, close_reason("force disconnect", reconnect=False).decode())

        with pytest.raises(ConnectionLost):
            await calling  # it may have happened
        with pytest.raises(Disconnected) as raised:
            await publishing
        assert (raised.value.code, raised.value.reason) == (3503, "force disconnect")
        assert gw.state is State.CLOSED
    assert server.attempts == 1


# --- commands -------------------------------------------------------------------------------------


async def test_a_reply_may_come_on_another_line(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        waiting = start(gw.rpc("x", [1]))
        command = await line.hear("rpc")
        assert command["rpc"] == {"method": "x", "data": [1]}
        line.abort()
        again = await server.accept()
        wish = await again.resume_session(2)
        assert (wish["token"], wish["received"], wish["attempt"]) == ("token", 1, 1)
        await again.answer(command, data="done")

        assert await waiting == "done"
        assert gw.client_id == "c1"


async def test_a_command_that_did_not_arrive_is_sent_again(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        waiting = start(gw.rpc("x"))
        command = await line.hear("rpc")
        line.abort()
        again = await server.accept()
        await again.resume_session(1)

        assert await again.hear("rpc") == command
        await again.answer(command, data=1)
        assert await waiting == 1


async def lose_session(server: ScriptedGateway, line: ScriptedLine) -> ScriptedLine:
    """Break the line and refuse to resume; gives the line on which a new session has begun."""
    line.abort()
    again = await server.accept()
    await again.hear("resume")
    await again.say(gone(Gone.EXPIRED))
    await again.greet("c2")
    return again


async def test_with_the_session_a_call_may_be_lost(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        once, repeatable = start(gw.rpc("a")), start(gw.rpc("b", repeatable=True))
        await line.hear("rpc")
        await line.hear("rpc")
        again = await lose_session(server, line)

        with pytest.raises(ConnectionLost) as raised:
            await once
        assert raised.value.method == "rpc"
        command = await again.hear("rpc")
        assert command["rpc"]["method"] == "b"
        await again.answer(command, data=2)
        assert await repeatable == 2
        assert gw.client_id == "c2"


async def test_a_publish_is_repeated_with_its_key(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        durable, ephemeral = start(gw.publish("c", 1)), start(gw.publish("c", 2, ephemeral=True))
        first = await line.hear("publish")
        assert (await line.hear("publish"))["publish"] == {
            "channel": "c",
            "data": 2,
            "ephemeral": True,
        }
        again = await lose_session(server, line)

        with pytest.raises(ConnectionLost):
            await ephemeral
        repeated = await again.hear("publish")
        assert repeated["publish"] == first["publish"]
        assert len(repeated["publish"]["idempotency_key"]) == 32
        await again.answer(repeated, offset=7, epoch="e", duplicate=True)
        published = await durable
        assert (published.position, published.duplicate) == (StreamPosition(7, "e"), True)


async def test_what_was_never_sent_is_not_lost(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        await line.close(3011, "force reconnect")
        await gw.wait_for(State.WAITING, State.CONNECTING)
        waiting = start(gw.rpc("x"))
        again = await server.accept()
        await again.greet("c2")
        await again.answer(await again.hear("rpc"), data=3)

        assert await waiting == 3


async def test_a_command_that_nobody_waits_for_is_forgotten(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await gw.rpc("x")
        late = await line.hear("rpc")
        waiting = start(gw.rpc("y"))
        command = await line.hear("rpc")
        await line.say(
            {"id": late["id"], "rpc": {"data": "late"}}, {"id": command["id"], "rpc": {"data": 1}}
        )

        assert await waiting == 1


async def test_error_replies_tell_whether_to_try_again(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        waiting = start(gw.publish("c", 1))
        await line.refuse(await line.hear("publish"), 111, temporary=True)

        with pytest.raises(CommandError) as raised:
            await waiting
        error = raised.value
        assert (error.method, error.code, error.reason, error.temporary) == (
            "publish",
            111,
            "no",
            True,
        )


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense",
        b'{"id":"one"}',
        b'{"push":[]}',
        b'{"id":2,"publish":{}}',
        b"[]",
        b"[" * 5000,
        b'{"id":2,"rpc":{"data":' + b"1" * 5000 + b"}}",
    ],
)
async def test_a_server_that_speaks_otherwise_is_left_and_tried_again(
    server: ScriptedGateway, caplog: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    async with begun(server) as (gw, line):
        waiting = start(gw.rpc("x", repeatable=True))
        assert (await line.hear("rpc"))["id"] == 2
        await line.say(nonsense)
        assert await line.hear_end() == 1000
        again = await server.accept()
        await again.greet()
        await again.answer(await again.hear("rpc"), data=1)

        assert await waiting == 1
    assert "isn't of this protocol" in caplog.text


async def test_numbers_that_no_float_can_hold_harm_nobody(server: ScriptedGateway) -> None:
    """They are valid JSON, and so anybody may publish them."""
    async with begun(server) as (gw, line):
        messages, (entering, command) = await subscribed(gw, line)
        await line.answer(command)
        await entering
        huge = b"[1e999,-1e999,%d]" % 10**40
        await line.say(b'{"push":{"channel":"c","pub":{"data":%b}}}' % huge)

        assert (await anext(messages)).data == [math.inf, -math.inf, 10**40]


# --- lines ----------------------------------------------------------------------------------------


async def test_frames_are_acknowledged(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        for _ in range(30):
            await line.say({})
        await line.say(ping(1, 31, 0.02, Quality.FAIR, 60.0))
        assert await line.hear("pong") == {"received": 31, "sent": 1}
        for _ in range(32):
            await line.say({}, {})  # two messages, one frame
        assert await line.hear("ack") == 63

        assert gw.rtt == 0.02
        assert gw.quality is Quality.FAIR
        assert gw.retry_at is None


async def test_a_close_says_when_to_come_back(server: ScriptedGateway) -> None:
    loop = asyncio.get_running_loop()
    async with begun(server) as (gw, line):
        closed_at = loop.time()
        await line.close(3001, close_reason("shutdown", reconnect=True, retry_ms=300).decode())
        await gw.wait_for(State.WAITING)
        assert gw.retry_at is not None
        assert gw.retry_at == pytest.approx(closed_at + 0.3, abs=0.25)
        waiting = start(gw.rpc("x"))
        again = await server.accept()

        assert loop.time() >= closed_at + 0.3
        await again.resume_session(1)
        await again.answer(await again.hear("rpc"), data=1)
        assert await waiting == 1


async def test_a_client_moves_without_a_pause(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        await line.say(move(0.05, 30.0))
        again = await server.accept()
        wish = await again.hear("resume")
        assert (wish["received"], wish["attempt"]) == (1, 1)
        waiting = start(gw.rpc("x"))
        command = await line.hear("rpc")  # still on the old line
        assert gw.state is State.CONNECTED
        await line.answer(command, data="old")
        assert await waiting == "old"
        await again.say(
            b'{"session":{"resumed":{"generation":2,"received":2,"replay":1,"retain":1,"stable":1}}}'
        )
        await again.answer(command, data="old")  # the server couldn't know that it had arrived
        assert await line.hear_end() == 3012
        waiting = start(gw.rpc("y"))
        await again.answer(await again.hear("rpc"), data="new")

        assert await waiting == "new"


async def test_more_than_a_session_may_hold_waits_outside(server: ScriptedGateway) -> None:
    """Nothing overflows, however many commands there are and however long the outage."""
    async with begun(server) as (gw, line):
        line.abort()
        waiting = [start(gw.publish("c", "x" * 60_000)) for _ in range(300)]
        again = await server.accept()
        await again.resume_session(1)
        heard = 0
        while heard < 300:
            message = await again.hear()
            if "publish" in message:
                await again.answer(message)
                heard += 1
                if heard % 32 == 0:
                    await again.say(ack(1 + heard))
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*waiting)

        assert gw.client_id == "c1"


# --- subscriptions --------------------------------------------------------------------------------


async def test_a_subscription_that_may_work_later_is_tried_again(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages, (entering, command) = await subscribed(gw, line)
        await line.refuse(command, 111, temporary=True)
        await line.answer(await line.hear("subscribe"))
        await entering
        await line.push("c", pub={"data": 1})

        assert (await anext(messages)).data == 1
        assert messages.position is None


async def test_a_subscription_may_be_left_before_it_has_joined(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages, (entering, _) = await subscribed(gw, line)
        messages.leave()

        with pytest.raises(Closed):
            await entering
        assert (await line.hear("unsubscribe"))["unsubscribe"] == {"channel": "c"}


async def test_a_subscription_waits_for_the_next_connection(server: ScriptedGateway) -> None:
    """Whether the last one was lost before it could ask, or while it did."""
    async with begun(server) as (gw, line):
        _, (first, _) = await subscribed(gw, line, "first")
        await line.close(3011, "force reconnect")
        await gw.wait_for(State.WAITING, State.CONNECTING)
        second = start(gw.subscribe("second").__aenter__())
        again = await server.accept()
        await again.greet("c2")
        for _ in range(2):
            await again.answer(await again.hear("subscribe"))

        assert {(await first).channel, (await second).channel} == {"first", "second"}


async def test_a_channel_may_lose_its_log(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line)
        again = await lose_session(server, line)
        await again.answer(await again.hear("subscribe"))
        await again.push("c", pub={"data": 1})

        with pytest.raises(PublicationsLost) as raised:
            await anext(messages)
        assert (raised.value.first, raised.value.last) == (None, None)
        assert messages.position is None
        assert (await anext(messages)).data == 1


async def test_a_getter_of_a_channel_that_fails_is_asked_again(
    server: ScriptedGateway, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: Iterator[str | ValueError] = iter([ValueError("no"), "second"])

    async def get_token() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    async with begun(server) as (gw, line):
        _, (entering, command) = await subscribed(gw, line, token=get_token)
        assert command["subscribe"] == {"channel": "c", "token": "second"}
        await line.answer(command)
        await entering
    assert "there is no token for c" in caplog.text


async def test_a_subscription_joins_again_where_it_was(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line)
        await line.push("c", pub=publication(11))
        assert (await anext(messages)).offset == 11
        again = await lose_session(server, line)
        command = await again.hear("subscribe")
        assert command["subscribe"] == {
            "channel": "c",
            "recover": True,
            "epoch": "e",
            "offset": 11,
        }
        await again.answer(
            command,
            **POSITIONED,
            offset=11,
            was_recovering=True,
            recovered=True,
            publications=[publication(11), publication(12)],
        )
        await again.push("c", pub=publication(12))
        await again.push("c", pub=publication(13))

        assert [(await anext(messages)).offset for _ in range(2)] == [12, 13]
        assert messages.position == StreamPosition(13, "e")


async def test_subscriptions_join_before_commands_are_repeated(server: ScriptedGateway) -> None:
    """So that who publishes and listens sees it."""
    async with begun(server) as (gw, line):
        messages, (entering, command) = await subscribed(gw, line)
        await line.answer(command)
        await entering
        publishing = start(gw.publish("c", 1))
        await line.hear("publish")
        again = await lose_session(server, line)

        await again.answer(await again.hear("subscribe"))
        await again.answer(await again.hear("publish"))
        await publishing
        messages.leave()


async def test_another_life_of_the_log_begins_a_new_count(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line)
        again = await lose_session(server, line)
        await again.answer(
            await again.hear("subscribe"),
            recoverable=True,
            epoch="f",
            offset=2,
            was_recovering=True,
            gap={"from": 1, "to": 2},
        )
        await again.push("c", pub=publication(3))

        with pytest.raises(PublicationsLost) as raised:
            await anext(messages)
        assert (raised.value.first, raised.value.last) == (1, 2)
        assert messages.position == StreamPosition(2, "f")
        assert (await anext(messages)).offset == 3
        assert messages.position == StreamPosition(3, "f")


async def test_a_hole_in_the_offsets_is_told(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line)
        await line.push("c", pub=publication(11))
        await line.push("c", pub=publication(15))

        assert (await anext(messages)).offset == 11
        with pytest.raises(PublicationsLost) as raised:
            await anext(messages)
        assert (raised.value.first, raised.value.last) == (12, 14)
        assert (await anext(messages)).offset == 15


async def test_insufficient_state_makes_it_join_again(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line)
        await line.push("c", unsubscribe={"code": 2500, "reason": "insufficient state"})
        command = await line.hear("subscribe")
        assert command["subscribe"]["offset"] == 10
        await line.push("c", pub=publication(12))  # before the reply: nothing of this subscription
        await line.answer(
            command,
            **POSITIONED,
            offset=10,
            recovered=True,
            publications=[publication(11), publication(12)],
        )

        assert [(await anext(messages)).offset for _ in range(2)] == [11, 12]


async def test_who_falls_behind_goes_on_when_there_is_room(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line, limits=QueueLimits(publications=2))
        for offset in (11, 12, 13, 14):
            await line.push("c", pub=publication(offset))
        await line.push("c", pub={"data": "ephemeral"})
        assert (await line.hear("unsubscribe"))["unsubscribe"] == {"channel": "c"}
        assert [(await anext(messages)).offset for _ in range(2)] == [11, 12]
        waiting = start(anext(messages))
        command = await line.hear("subscribe")
        assert command["subscribe"]["offset"] == 12
        await line.answer(
            command, **POSITIONED, offset=12, recovered=True, publications=[publication(13)]
        )

        assert (await waiting).offset == 13


async def test_who_is_behind_may_lose_the_connection_too(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages = await joined(gw, line, limits=QueueLimits(publications=1))
        await line.push("c", pub=publication(11))
        await line.push("c", pub=publication(12))
        await line.hear("unsubscribe")
        assert (await anext(messages)).offset == 11
        line.abort()
        again = await server.accept()
        await again.hear("resume")
        waiting = start(anext(messages))
        await again.say(gone(Gone.UNKNOWN))
        await again.greet("c2")
        command = await again.hear("subscribe")
        assert command["subscribe"]["offset"] == 11
        await again.answer(
            command, **POSITIONED, offset=11, recovered=True, publications=[publication(12)]
        )

        assert (await waiting).offset == 12


async def test_what_is_dropped_is_noted_once(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages, (entering, command) = await subscribed(
            gw, line, limits=QueueLimits(publications=1)
        )
        await line.answer(command)
        await entering
        for number in range(5):
            await line.push("c", pub={"data": number})
        waiting = start(gw.rpc("x"))
        await line.answer(await line.hear("rpc"))
        await waiting

        assert (await anext(messages)).data == 0
        with pytest.raises(PublicationsLost) as raised:
            await anext(messages)
        assert (raised.value.first, raised.value.last) == (None, None)
        await line.push("c", pub={"data": 5})
        assert (await anext(messages)).data == 5


async def test_other_channels_and_other_pushes_are_not_looked_at(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        messages, (entering, command) = await subscribed(gw, line)
        await line.answer(command)
        await entering
        await line.push("d", pub={"data": 1})
        await line.push("d", unsubscribe={"code": 2000, "reason": "x"})
        await line.push("c", join={"info": {"user": "u", "client": "x"}})
        await line.say({"push": {"message": {"data": 1}}})
        await line.push("c", pub={"data": 2, "tags": {"a": "b"}, "time": 5})

        publication = await anext(messages)
        assert (publication.data, publication.tags, publication.time_ms) == (2, {"a": "b"}, 5)


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_lifetime_that_the_server_changes_is_kept(server: ScriptedGateway) -> None:
    tokens = iter(["first", "second", "third"])

    async def get_token() -> str:
        return next(tokens)

    async with begun(server, get_token) as (_, line):
        await line.say({"push": {"refresh": {"expires": True, "ttl": 0}}})
        command = await line.hear("refresh")
        assert command["refresh"] == {"token": "second"}
        await line.refuse(command, 100, temporary=True)
        command = await line.hear("refresh")
        assert command["refresh"] == {"token": "third"}
        await line.answer(command)


async def test_a_getter_that_fails_is_asked_again_before_the_end(
    server: ScriptedGateway, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: Iterator[str | ValueError] = iter(["first", ValueError("no"), "second"])

    async def get_token() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    caplog.set_level(logging.WARNING)
    async with begun(server, get_token) as (gw, line):
        await line.say({"push": {"refresh": {"expires": True, "ttl": 0}}})
        command = await line.hear("refresh")
        assert command["refresh"] == {"token": "second"}
        await line.refuse(command, 103)
        await until(lambda: "a token was not accepted" in caplog.text)

        assert "there is no new token" in caplog.text
        assert gw.state is State.CONNECTED


async def test_without_a_getter_nothing_is_refreshed(server: ScriptedGateway) -> None:
    async with begun(server) as (gw, line):
        await line.say({"push": {"refresh": {"expires": True, "ttl": 0}}})
        waiting = start(gw.rpc("x"))
        await line.answer(await line.hear("rpc"), data=1)

        assert await waiting == 1
