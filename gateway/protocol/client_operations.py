"""What a client does in channels besides subscribing: publish, presence, history; and RPCs."""

from typing import Final

from gateway.protocol import codec
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.client_subscriptions import SubscribingClient
from gateway.protocol.codec import Command, Method
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    BAD_REQUEST,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    UNAVAILABLE,
    ErrorCode,
)
from gateway.protocol.limits import is_unfit_for_others
from gateway.protocol.permissions import Operation

IDEMPOTENCY_KEY_LENGTH_MAX: Final = 64
HISTORY_LIMIT_MAX: Final = 300


class OperatingClient(SubscribingClient):
    """A client with commands on channels; see the module."""

    __slots__ = ()

    # --- publish, presence, history, rpc ----------------------------------------------------------

    def _publish(self, command_id: int, command: Command, now: float) -> None:
        request = command.publish
        assert request is not None, "dispatched by its presence"
        options = self._allow(Operation.PUBLISH, request.channel)
        if options is None:
            return
        data = bytes(request.data)
        error = options if isinstance(options, ErrorCode) else None
        if error is None and request.type:
            error = NOT_AVAILABLE
        if error is None and (
            not data
            or len(request.idempotency_key) > IDEMPOTENCY_KEY_LENGTH_MAX
            or "\0" in request.idempotency_key
            or is_unfit_for_others(data)
        ):
            error = BAD_REQUEST
        if error is not None or isinstance(options, ErrorCode):
            self._fail(command_id, "publish", error or BAD_REQUEST)
            return
        if self._begin(command_id, "publish"):
            self._actions.publish(
                command_id,
                Publishing(
                    request.channel,
                    options,
                    data,
                    self.client_info(request.channel),
                    None,
                    request.idempotency_key,
                    request.ephemeral,
                ),
            )

    def published(self, command_id: int, outcome: Published | ErrorCode) -> None:
        """The answer to `Actions.publish`."""
        if isinstance(outcome, ErrorCode):
            self.answer(command_id, "publish", outcome)
        else:
            self.answer(
                command_id,
                "publish",
                codec.publish_result(outcome.offset, outcome.epoch, outcome.duplicate),
            )

    def _presence(self, command_id: int, command: Command, now: float) -> None:
        assert command.presence is not None, "dispatched by its presence"
        self._read_presence(command_id, command.presence.channel, "presence")

    def _presence_stats(self, command_id: int, command: Command, now: float) -> None:
        assert command.presence_stats is not None, "dispatched by its presence"
        self._read_presence(command_id, command.presence_stats.channel, "presence_stats")

    def _read_presence(self, command_id: int, channel: str, method: Method) -> None:
        options = self._allow(Operation.PRESENCE, channel)
        if options is None:
            return
        if isinstance(options, ErrorCode):
            self._fail(command_id, method, options)
        elif not options.presence:
            self._fail(command_id, method, NOT_AVAILABLE)
        elif self._begin(command_id, method):
            self._actions.presence(command_id, channel, method == "presence_stats")

    def _history(self, command_id: int, command: Command, now: float) -> None:
        request = command.history
        assert request is not None, "dispatched by its presence"
        options = self._allow(Operation.HISTORY, request.channel)
        if options is None:
            return
        if isinstance(options, ErrorCode):
            self._fail(command_id, "history", options)
        elif not options.keeps_history:
            self._fail(command_id, "history", NOT_AVAILABLE)
        elif self._begin(command_id, "history"):
            limit = request.limit
            if limit < 0 or limit > HISTORY_LIMIT_MAX:
                limit = HISTORY_LIMIT_MAX
            self._actions.history(
                command_id, request.channel, options, limit, request.since, request.reverse
            )

    def _rpc(self, command_id: int, command: Command, now: float) -> None:
        assert command.rpc is not None, "dispatched by its presence"
        if self._begin(command_id, "rpc"):
            self._actions.call(command_id, command.rpc.method, bytes(command.rpc.data))

    def _send(self, command_id: int, command: Command, now: float) -> None:
        self._close(UNAVAILABLE, "no handler takes messages sent without an id")

    def _ping(self, command_id: int, command: Command, now: float) -> None:
        self._actions.send(codec.reply(command_id, "ping"))

    def _allow(self, operation: Operation, channel: str) -> ChannelOptions | ErrorCode | None:
        """The channel's options if the operation is allowed there; None when it cost the link."""
        if not channel:
            self._close(BAD_PROTOCOL, f"{operation.value} without a channel")
            return None
        rules = self._rules.channels
        options = rules.resolve(channel)
        if isinstance(options, ErrorCode):
            return options
        subscribed = channel in self.subscriptions
        if not rules.may(operation, options, self.user, subscribed):
            return PERMISSION_DENIED
        return options
