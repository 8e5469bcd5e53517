"""What every part of a client's state machine stands on: its state, and how it answers.

The machine is `client.Client`; its parts are layers, each knowing those below:

    client              phases, connect, refresh, time
    client_operations   publish, presence, history, rpc
    client_subscriptions  subscribe, unsubscribe, what the server does to subscriptions
    client_base         state, replies, limits on what is under way
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from gateway.protocol import codec
from gateway.protocol.actions import Actions, ClientRules
from gateway.protocol.codec import Command, Method
from gateway.protocol.codes import TOO_MANY_REQUESTS, Disconnect, ErrorCode
from gateway.protocol.limits import TokenBucket
from gateway.protocol.subscription import NEVER, Subscription, SubscriptionState

# Commands of one client that may wait for the database at once, and that may wait behind connect.
# The SDKs send a few; the bound keeps one client from filling the publish queue alone.
IN_FLIGHT_MAX: Final = 1024
# How much of that one command takes: the answers to these may be a megabyte long.
_WEIGHTS: Final[Mapping[Method, int]] = {"history": 64}


class Phase(Enum):
    """Where a client is between its first byte and its last."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"
    CLOSED = "closed"


class ClientBase:
    """One client's state."""

    __slots__ = (
        "_actions",
        "_bucket",
        "_connect_id",
        "_connect_left",
        "_in_flight",
        "_info_json",
        "_ping_at",
        "_pong_by",
        "_refusals",
        "_rules",
        "_session",
        "_stale_at",
        "_token_ends",
        "_waiting",
        "_waiting_size",
        "deadline_moved",
        "expires_at",
        "id",
        "info",
        "native_ping",
        "phase",
        "subscriptions",
        "user",
    )

    def __init__(
        self,
        client_id: str,
        rules: ClientRules,
        actions: Actions,
        now: float,
        native_ping: bool = False,
        session: bool = False,
    ) -> None:
        self.id = client_id
        self.user = ""
        self.info: bytes | None = None
        self.phase = Phase.NEW
        self.subscriptions: dict[str, Subscription] = {}
        self._rules = rules
        self._actions = actions
        self.native_ping = native_ping
        self._session = session  # a session layer below does the pinging (PROTOCOL.md B.1)
        # Set when `next_deadline` may have come nearer; cleared by the caller.
        self.deadline_moved = False
        self._bucket = TokenBucket(rules.commands_burst, now)
        self._refusals = 0
        self._in_flight = 0
        self._info_json = b""
        self._connect_id = 0
        self._connect_left = 0  # subscriptions that the connect reply still waits for
        self._waiting: list[Command] | None = None
        self._waiting_size = 0
        self._stale_at = now + rules.stale_close_delay
        self._ping_at = NEVER
        self._pong_by = NEVER
        self.expires_at = NEVER  # when its token ends; the grace comes on top
        # When the first token ends, its own or a subscription's: one number in place of a look at
        # each of them with every ping.
        self._token_ends = NEVER

    @property
    def is_waited_for(self) -> bool:
        """Whether a command of its, or a subscription, waits for an answer from elsewhere."""
        return self._in_flight > 0 or any(
            sub.state is SubscriptionState.OPENING for sub in self.subscriptions.values()
        )

    def _take_out(self, subscription: Subscription) -> None:
        del self.subscriptions[subscription.channel]
        if subscription.expires_at != NEVER:
            self._token_replaced(subscription.expires_at, NEVER)

    def _token_replaced(self, former: float, expires_at: float) -> None:
        """A token holds until `expires_at` in place of one that held until `former`, or none."""
        if former == self._token_ends and expires_at > former:
            self._token_ends = self._first_end()
        else:
            self._token_ends = min(self._token_ends, expires_at)
        self.deadline_moved = True

    def _first_end(self) -> float:
        """When the first of its tokens ends."""
        return min(self.expires_at, *(sub.expires_at for sub in self.subscriptions.values()), NEVER)

    # --- what waits for an answer -----------------------------------------------------------------

    def _begin(self, command_id: int, method: Method) -> bool:
        """Count a command that will be answered later; refuse it when too many wait."""
        weight = _WEIGHTS.get(method, 1)
        if self._in_flight + weight > IN_FLIGHT_MAX:
            self._fail(command_id, method, TOO_MANY_REQUESTS)
            return False
        self._in_flight += weight
        return True

    def _end(self, method: Method) -> None:
        self._in_flight -= _WEIGHTS.get(method, 1)

    def answer(self, command_id: int, method: Method, outcome: bytes | ErrorCode) -> None:
        """The result of a command that had to wait."""
        self._end(method)
        if self.phase is Phase.CLOSED:
            return
        if isinstance(outcome, ErrorCode):
            self._fail(command_id, method, outcome)
        else:
            self._actions.send(codec.reply(command_id, method, outcome))

    def client_info(self, channel: str) -> bytes:
        """This client's ClientInfo as others see it in a channel."""
        subscription = self.subscriptions.get(channel)
        if subscription is not None and subscription.chan_info:
            return codec.client_info(self.user, self.id, self.info, subscription.chan_info)
        if not self._info_json:
            self._info_json = codec.client_info(self.user, self.id, self.info)
        return self._info_json

    def closed(self) -> None:
        """The connection ended, whoever ended it: leave everything."""
        self.phase = Phase.CLOSED
        self._waiting = None
        self._token_ends = NEVER  # and needs no other look at each removal
        for subscription in list(self.subscriptions.values()):
            self._remove(subscription)

    def _remove(self, subscription: Subscription) -> None:
        self._take_out(subscription)
        if subscription.state is SubscriptionState.LIVE:
            self._actions.leave(subscription)

    # --- output -----------------------------------------------------------------------------------

    def _fail(self, command_id: int, method: Method, error: ErrorCode) -> None:
        self._actions.error_seen(method, error)
        self._actions.send(codec.error_reply(command_id, error))

    def _close(self, disconnect: Disconnect, detail: str) -> None:
        self.closed()
        self._actions.close(disconnect, detail)


def seconds_left(deadline: float, now: float) -> int | None:
    """Whole seconds until a deadline, at least one; None when there is none."""
    return None if deadline == NEVER else max(1, int(deadline - now))
