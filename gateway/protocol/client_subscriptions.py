"""A client's subscriptions: by its own command, by its token, by the server (PROTOCOL.md A.4, A.5).

A subscription is OPENING until the world has what joining needs (`prepared`); joining, the reply
and becoming LIVE then happen in one step, so no publication can slip between the reply and the
first push. One that was cancelled while it opened is answered then and no longer in the table.
"""

from gateway.protocol import codec
from gateway.protocol.actions import SubscribeGrant
from gateway.protocol.channels import ChannelOptions, is_private
from gateway.protocol.claims import (
    KeyMissing,
    ServerSubscription,
    SubscribeClaims,
    TokenError,
    TokenExpired,
)
from gateway.protocol.client_base import ClientBase, Phase, seconds_left
from gateway.protocol.codec import Command, StreamPosition
from gateway.protocol.codes import (
    ALREADY_SUBSCRIBED,
    BAD_PROTOCOL,
    BAD_REQUEST,
    EXPIRED,
    INSUFFICIENT_STATE,
    INTERNAL,
    INVALID_TOKEN,
    LIMIT_EXCEEDED,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE,
    ErrorCode,
    Unsubscribe,
)
from gateway.protocol.subscription import NEVER, Subscription, SubscriptionState


class SubscribingClient(ClientBase):
    """A client with subscriptions; see the module."""

    __slots__ = ()

    # --- subscribe --------------------------------------------------------------------------------

    def _subscribe(self, command_id: int, command: Command, now: float) -> None:
        request = command.subscribe
        assert request is not None, "dispatched by its presence"
        channel = request.channel
        if not channel:
            self._close(BAD_PROTOCOL, "subscribe without a channel")
            return
        options = self._may_open(request)
        if isinstance(options, ErrorCode):
            self._fail(command_id, "subscribe", options)
            return
        subscription = Subscription(channel, options)
        subscription.command_id = command_id
        if request.token:
            self.subscriptions[subscription.channel] = subscription

            def answer(grant: SubscribeGrant | TokenError, now: float) -> None:
                self._take_subscribe_grant(subscription, request, grant, now)

            self._actions.verify_subscribe(request.token, answer)
        elif self._rules.channels.may_subscribe(channel, options, self.user):
            self.subscriptions[subscription.channel] = subscription
            subscription.ask(request)
            self._open(subscription)
        else:
            self._fail(command_id, "subscribe", PERMISSION_DENIED)

    def _may_open(self, request: codec.SubscribeRequest) -> ChannelOptions | ErrorCode:
        channel = request.channel
        options = self._rules.channels.resolve(channel)
        if isinstance(options, ErrorCode):
            return options
        if request.type or bytes(request.tf):
            return NOT_AVAILABLE
        if channel in self.subscriptions:
            return ALREADY_SUBSCRIBED
        if len(self.subscriptions) >= self._rules.channels_max:
            return LIMIT_EXCEEDED
        if is_private(channel) and not request.token:
            return PERMISSION_DENIED
        return options

    def _take_subscribe_grant(
        self,
        subscription: Subscription,
        request: codec.SubscribeRequest,
        grant: SubscribeGrant | TokenError,
        now: float,
    ) -> None:
        if self.subscriptions.get(subscription.channel) is not subscription:
            return
        if isinstance(grant, TokenError):
            self._drop(subscription, _refusal(grant))
        elif not self._token_fits(grant.claims, subscription.channel):
            self._close(INVALID_TOKEN, "a subscription token of another channel, user or client")
        elif not self._hold(subscription, grant, now):
            self._drop(subscription, TOKEN_EXPIRED)
        else:
            subscription.apply(grant.claims.override)
            subscription.ask(request)
            self._open(subscription)

    def _token_fits(self, claims: SubscribeClaims, channel: str) -> bool:
        return (
            claims.channel == channel
            and claims.user == self.user
            and claims.client in ("", self.id)
        )

    def _hold(self, subscription: Subscription, grant: SubscribeGrant, now: float) -> bool:
        """Note how long the token holds; False when it has already ended."""
        if grant.lifetime is not None and grant.lifetime <= 0:
            return False
        former = subscription.expires_at
        subscription.expires_at = NEVER if grant.lifetime is None else now + grant.lifetime
        self._token_replaced(former, subscription.expires_at)
        subscription.chan_info = grant.claims.info
        return True

    def _open(self, subscription: Subscription) -> None:
        def answer(error: ErrorCode | None, now: float) -> None:
            if self.subscriptions.get(subscription.channel) is not subscription:
                return
            if error is not None:
                self._drop(subscription, error)
            else:
                self._finish_subscribe(subscription, now)

        self._actions.prepare(subscription, answer)

    def _finish_subscribe(self, subscription: Subscription, now: float) -> None:
        result = self._enter(subscription, now)
        if result is None:
            self._drop(subscription, UNRECOVERABLE)
        elif subscription.command_id:
            self._actions.send(codec.reply(subscription.command_id, "subscribe", result))
        else:
            self._actions.send(codec.subscribe_push(subscription.channel, result))

    def _enter(self, subscription: Subscription, now: float) -> bytes | None:
        """Join and go live; return the SubscribeResult, None when the client won't have it."""
        joined = self._actions.join(subscription)
        if joined is None:
            return None
        subscription.state = SubscriptionState.LIVE
        position = joined.position if subscription.positioned else None
        since = subscription.since
        if joined.recovered and since is not None and position is not None:
            # The client's own offset: it advances as it processes the publications (A.5.3).
            position = StreamPosition(since.offset, position.epoch)
        subscription.since = None
        return codec.subscribe_result(
            position=position,
            recoverable=subscription.recoverable,
            positioned=subscription.positioned,
            recovered=joined.recovered,
            publications=joined.publications,
            gap=joined.gap,
            ttl=seconds_left(subscription.expires_at, now),
            data=subscription.data,
        )

    def _drop(self, subscription: Subscription, error: ErrorCode) -> None:
        """Give a subscription up that never went live."""
        self._take_out(subscription)
        if subscription.command_id:
            self._fail(subscription.command_id, "subscribe", error)

    def _unsubscribe(self, command_id: int, command: Command, now: float) -> None:
        request = command.unsubscribe
        assert request is not None, "dispatched by its presence"
        if not request.channel:
            self._close(BAD_PROTOCOL, "unsubscribe without a channel")
            return
        subscription = self.subscriptions.get(request.channel)
        if subscription is not None:
            self._remove(subscription)
            if subscription.state is SubscriptionState.OPENING and subscription.command_id:
                # Temporary, as the SDK may be subscribing again already and takes it for that one.
                self._fail(subscription.command_id, "subscribe", TOO_MANY_REQUESTS)
        self._actions.send(codec.reply(command_id, "unsubscribe"))

    # --- subscription tokens ----------------------------------------------------------------------

    def _sub_refresh(self, command_id: int, command: Command, now: float) -> None:
        request = command.sub_refresh
        assert request is not None, "dispatched by its presence"
        if not request.channel:
            self._close(BAD_PROTOCOL, "sub_refresh without a channel")
            return
        subscription = self.subscriptions.get(request.channel)
        if subscription is None or subscription.state is not SubscriptionState.LIVE:
            self._fail(command_id, "sub_refresh", PERMISSION_DENIED)
            return
        if not request.token:
            self._fail(command_id, "sub_refresh", BAD_REQUEST)
            return

        def answer(grant: SubscribeGrant | TokenError, now: float) -> None:
            self._end("sub_refresh")
            if self.phase is not Phase.CONNECTED:
                return
            if self.subscriptions.get(subscription.channel) is not subscription:
                self._fail(command_id, "sub_refresh", PERMISSION_DENIED)  # unsubscribed meanwhile
            elif isinstance(grant, TokenExpired | KeyMissing):
                self._fail(command_id, "sub_refresh", _refusal(grant))
            elif isinstance(grant, TokenError):
                self._close(INVALID_TOKEN, str(grant))
            elif not self._token_fits(grant.claims, subscription.channel):
                self._close(INVALID_TOKEN, "a subscription token of another channel or client")
            elif not self._hold(subscription, grant, now):
                self._fail(command_id, "sub_refresh", EXPIRED)
            else:
                ttl = seconds_left(subscription.expires_at, now)
                result = codec.sub_refresh_result(ttl)
                self._actions.send(codec.reply(command_id, "sub_refresh", result))

        if self._begin(command_id, "sub_refresh"):
            self._actions.verify_subscribe(request.token, answer)

    # --- what the server does to a client ---------------------------------------------------------

    def subscribe_by_server(
        self, channel: str, grant: ServerSubscription, since: StreamPosition | None = None
    ) -> ErrorCode | None:
        """Subscribe the client; a `subscribe` push follows.

        Nothing to do is a success: subscribed already, or not connected (yet, or any more).
        """
        if self.phase is not Phase.CONNECTED or channel in self.subscriptions:
            return None
        if len(self.subscriptions) >= self._rules.channels_max:
            return LIMIT_EXCEEDED
        subscription = self._server_subscription(channel, grant)
        if subscription is None:
            return BAD_REQUEST
        subscription.since = since if subscription.recoverable else None
        self.subscriptions[subscription.channel] = subscription
        self._open(subscription)
        return None

    def unsubscribe_by_server(self, channel: str, unsubscribe: Unsubscribe) -> bool:
        """End one subscription and tell the client; False when there is none."""
        subscription = self.subscriptions.get(channel)
        if subscription is None:
            return False
        opening = subscription.state is SubscriptionState.OPENING
        if opening and subscription.command_id:
            # No reply has gone out, so an error is what the client understands.
            self._drop(subscription, PERMISSION_DENIED)
            return True
        self._remove(subscription)
        self._actions.send(codec.unsubscribe_push(channel, unsubscribe))
        return True

    def lose_position(self, channel: str, unsubscribe: Unsubscribe) -> bool:
        """The log can't give what this subscription still needs (A.5.6).

        False when the subscription doesn't follow positions and simply goes on.
        """
        subscription = self.subscriptions.get(channel)
        if subscription is None:
            return True
        if not subscription.positioned:
            return False
        if subscription.server_side:
            self._close(INSUFFICIENT_STATE, f"missing publications in {channel!r}")
        else:
            self.unsubscribe_by_server(channel, unsubscribe)
        return True

    def _server_subscription(self, channel: str, grant: ServerSubscription) -> Subscription | None:
        options = self._rules.channels.resolve(channel) if channel else None
        if not isinstance(options, ChannelOptions):
            return None
        subscription = Subscription(channel, options)
        subscription.server_side = True
        subscription.chan_info = grant.info
        subscription.data = grant.data
        subscription.apply(grant.override)
        return subscription


def _refusal(error: TokenError) -> ErrorCode:
    """The error reply for a subscription token that can't be honoured."""
    if isinstance(error, TokenExpired):
        return TOKEN_EXPIRED
    # A key that can't be had right now says nothing about the token: the client tries again.
    return INTERNAL if isinstance(error, KeyMissing) else PERMISSION_DENIED
