"""A client's connection to a server, as often as it takes to make it: connect, refresh, dispatch.

    Gateway ──▶ Connection ──▶ Calls ─────────┐
                    │                         ▼
                    ├──▶ Subscription ──▶ Lines ──▶ ClientSession (pure)
                    │                         │
                    └──◀── began, received, lost

A session begins (`began`): the token goes out with `connect`. With its reply the connection is
open: commands that waited are sent, subscriptions join where they were. While the session lasts
nothing more happens here when sockets come and go. When it is lost, all of it begins again.
"""

import asyncio
import logging
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Final

import aiohttp

from gateway.client_calls import Calls
from gateway.client_errors import (
    CannotConnect,
    ClientError,
    CommandError,
    ConnectionLost,
    Disconnected,
    UpgradeRefused,
)
from gateway.client_lines import Lines
from gateway.client_messages import (
    ConnectResult,
    Lifetime,
    MalformedMessage,
    Push,
    decode_messages,
)
from gateway.client_subscription import Subscription
from gateway.client_tokens import Tokens, keep_fresh
from gateway.protocol.client_policy import SessionPolicy
from gateway.protocol.client_session import Lost
from gateway.protocol.client_states import ClientState
from gateway.protocol.codes import TOKEN_EXPIRED

logger = logging.getLogger(__name__)

# HTTP statuses below 500 that don't mean that the client is wrong.
_TEMPORARY_STATUSES: Final = frozenset({408, 425, 429})


class State(Enum):
    """How a client is connected."""

    CONNECTING = "connecting"
    """A socket, or a session on it, is being opened."""
    CONNECTED = "connected"
    WAITING = "waiting"
    """No socket; the next attempt is made at `retry_at`."""
    RESUMING = "resuming"
    """A new socket is under way for the session."""
    CLOSED = "closed"


class Connection:
    """See the module. Made and used inside a running event loop."""

    def __init__(
        self,
        url: str,
        tokens: Tokens,
        http: aiohttp.ClientSession,
        policy: SessionPolicy,
        name: str,
    ) -> None:
        self.lines = Lines(url, http, policy, self)
        self.calls = Calls(self.lines.send)
        self.client_id = ""
        self.error: ClientError | None = None  # why there will be no connection any more
        self.is_open = False
        self._tokens = tokens
        self._policy = policy
        self._name = name
        self._subscriptions: dict[str, Subscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._failure: Exception | None = None  # of the latest attempt
        self._was_open = False
        self._watchers: list[tuple[frozenset[State], asyncio.Future[State]]] = []

    async def open(self, timeout: float | None) -> None:
        """Connect for the first time. Raises CannotConnect, Disconnected or CommandError."""
        self.lines.start()
        try:
            async with asyncio.timeout(timeout):
                state = await self.wait_for(State.CONNECTED, State.CLOSED)
        except TimeoutError:
            raise CannotConnect(f"no connection after {timeout} s") from self._failure
        if state is State.CLOSED:
            assert self.error is not None, "closed for a reason"
            raise self.error

    def close(self, error: ClientError) -> None:
        """End everything, with this error for whoever waits."""
        if self.error is not None:
            return
        self.error = error
        self.is_open = False
        self.lines.leave()
        self.calls.close(error)
        for subscription in list(self._subscriptions.values()):
            subscription.end(error)
        self._stop_tasks()
        self.line_changed()

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs any more, after `close`."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.lines.wait_closed()

    # --- how it is --------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """How this client is connected."""
        if self.error is not None:
            return State.CLOSED
        session = self.lines.session
        if session.is_live:
            return State.CONNECTED if self.is_open else State.CONNECTING
        if session.state is ClientState.WAITING:
            return State.WAITING
        return State.RESUMING if session.has_session else State.CONNECTING

    async def wait_for(self, *states: State) -> State:
        """Wait until it is in one of these; gives that one."""
        if self.state in states:
            return self.state
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        watcher = frozenset(states), future
        self._watchers.append(watcher)
        try:
            return await future
        finally:
            self._watchers.remove(watcher)

    # --- what subscriptions need ------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """See `client_subscription.Host`."""
        if self.error is not None:
            raise self.error
        if subscription.channel in self._subscriptions:
            raise ValueError(f"there is a subscription to {subscription.channel} already")
        self._subscriptions[subscription.channel] = subscription

    def remove(self, subscription: Subscription) -> None:
        """See `client_subscription.Host`."""
        if self._subscriptions.get(subscription.channel) is subscription:
            del self._subscriptions[subscription.channel]

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """See `client_subscription.Host`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def delay(self, attempt: int) -> float:
        """See `client_subscription.Host`."""
        return self._policy.delay(attempt)

    # --- what the lines tell ----------------------------------------------------------------------

    def began(self) -> None:
        """See `client_lines.Layer`."""
        self._greeting = self.spawn(self._greet())

    def lost(self, loss: Lost) -> None:
        """See `client_lines.Layer`."""
        self.is_open = False
        self._stop_tasks()
        self.calls.lost()
        for subscription in list(self._subscriptions.values()):
            subscription.lost()
        if loss.code:
            disconnected = Disconnected(loss.code, loss.reason)
            self._failure = disconnected
            if loss.final:
                self.close(disconnected)

    def received(self, frame: bytes) -> None:
        """See `client_lines.Layer`."""
        try:
            for message in decode_messages(frame):
                if message.id:
                    self.calls.answer(message)
                elif message.push is not None:
                    self._take_push(message.push)
        except MalformedMessage as error:
            logger.warning("the server sent what isn't of this protocol: %s", error)
            self.lines.break_off(str(error))

    def failed(self, error: Exception) -> None:
        """See `client_lines.Layer`."""
        self._failure = error
        if isinstance(error, aiohttp.WSServerHandshakeError):
            self._failure = UpgradeRefused(error.status)
            is_final = 300 <= error.status < 500 and error.status not in _TEMPORARY_STATUSES
            if is_final and not self._was_open:
                # Later it may as well be a proxy whose server is being replaced.
                self.close(self._failure)

    def line_changed(self) -> None:
        """See `client_lines.Layer`."""
        if self._watchers:
            state = self.state
            for states, future in self._watchers:
                if state in states and not future.done():
                    future.set_result(state)

    # --- connecting -------------------------------------------------------------------------------

    async def _greet(self) -> None:
        """Say who this is; what was waiting goes on behind the answer."""
        try:
            request = {"token": await self._tokens.get(), "name": self._name}
        except Exception as error:  # the getter is somebody else's code
            logger.exception("there is no token")
            self._failure = error
            self.lines.break_off("there is no token")
            return
        try:
            await self.calls.call_now("connect", request, self._take_connected)
        except ConnectionLost:
            pass  # another session will begin
        except CommandError as error:
            self._failure = error
            has_other = error.code == TOKEN_EXPIRED.code and self._tokens.expire()
            if error.temporary or has_other:
                self.lines.break_off(str(error))
            else:
                self.close(error)

    def _take_connected(self, result: ConnectResult) -> None:
        self.client_id = result.client
        self.is_open = self._was_open = True
        self._keep_fresh(Lifetime(result.expires, result.ttl))
        for subscription in list(self._subscriptions.values()):
            subscription.opened()
        # Behind what the subscriptions send first: they should see what is published now.
        asyncio.get_running_loop().call_soon(self._release_calls)
        self.line_changed()

    def _release_calls(self) -> None:
        if self.is_open:
            self.calls.opened()

    def _keep_fresh(self, lifetime: Lifetime) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._refreshing = self.spawn(keep_fresh(self._tokens, lifetime, self._refresh))

    async def _refresh(self, token: str) -> Lifetime:
        result: Lifetime = await self.calls.call_now("refresh", {"token": token})
        return result

    def _take_push(self, push: Push) -> None:
        subscription = self._subscriptions.get(push.channel)
        if push.pub is not None:
            if subscription is not None:
                subscription.published(push.pub)
        elif push.unsubscribe is not None:
            if subscription is not None:
                subscription.unsubscribed(push.unsubscribe)
        elif push.refresh is not None:
            self._keep_fresh(push.refresh)

    def _stop_tasks(self) -> None:
        for task in (self._greeting, self._refreshing):
            if task is not None:
                task.cancel()
        self._greeting = self._refreshing = None
