"""The server HTTP API, `POST /api/<method>` (PROTOCOL.md A.11).

A request with a good key is answered with status 200 and `{"result": …}` or `{"error": {"code",
"message"}}`. Without one it is 401; a body that isn't JSON is 400, a method that doesn't exist 404.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import ValidationError

from gateway.connection import Connection, Services
from gateway.connections import ConnectionManager
from gateway.protocol import codes
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import ServerSubscription
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import Disconnect, ErrorCode
from gateway.protocol.permissions import ChannelRules
from gateway.streams import LogUnavailable
from handlers import api_requests as requests
from metrics import instruments

logger = logging.getLogger(__name__)

HISTORY_LIMIT_MAX: Final = 10_000
PAYLOAD_MAX_BYTES: Final = 1024 * 1024  # of one publication from a server, tags included


class APIError(Exception):
    """Answer with this error; `detail` tells the caller more than the code's message."""

    def __init__(self, error: ErrorCode, detail: str = "") -> None:
        super().__init__(detail or error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class ServerAPI:
    """The methods. Each takes its validated request and returns its result."""

    services: Services
    manager: ConnectionManager
    channels: ChannelRules
    node: str
    version: str
    started_at: float = 0.0

    def _options(self, channel: str) -> ChannelOptions:
        options = self.channels.resolve(channel)
        if isinstance(options, ErrorCode):
            raise APIError(options)
        return options

    async def publish(self, request: requests.PublishRequest) -> dict[str, Any]:
        """Publish to one channel; the result has the position when the channel keeps history."""
        return await self._publish(request.channel, request, request.payload())

    async def broadcast(self, request: requests.BroadcastRequest) -> dict[str, Any]:
        """Publish the same to many channels; each has its own response."""
        data = request.payload()

        async def one(channel: str) -> dict[str, Any]:
            try:
                return {"result": await self._publish(channel, request, data)}
            except APIError as error:
                return {"error": _error(error)}

        responses = await asyncio.gather(*(one(channel) for channel in request.channels))
        return {"responses": responses}

    async def _publish(
        self,
        channel: str,
        request: requests.PublishRequest | requests.BroadcastRequest,
        data: bytes,
    ) -> dict[str, Any]:
        options = self._options(channel)
        if request.version:
            raise APIError(codes.NOT_AVAILABLE, "versioned publications are not supported")
        tags = orjson.dumps(request.tags) if request.tags else None
        if len(data) + len(tags or b"") > PAYLOAD_MAX_BYTES:
            raise APIError(codes.BAD_REQUEST, "the payload is too large")
        if "\0" in request.idempotency_key:
            raise APIError(codes.BAD_REQUEST, "bad request: idempotency_key: has a NUL character")
        done: asyncio.Future[Published | ErrorCode] = self.services.loop.create_future()
        self.services.publisher.publish(
            Publishing(
                channel,
                options,
                data,
                tags=tags,
                idempotency_key=request.idempotency_key,
                ephemeral=request.skip_history,
            ),
            lambda outcome: None if done.done() else done.set_result(outcome),
        )
        outcome = await done
        if isinstance(outcome, ErrorCode):
            raise APIError(outcome)
        result: dict[str, Any] = {}
        if outcome.offset:
            result = {"offset": outcome.offset, "epoch": outcome.epoch}
        if outcome.duplicate:
            result["duplicate"] = True
        return result

    def _find(self, target: requests.Target) -> list[Connection]:
        if not target.user and not target.client:
            raise APIError(codes.BAD_REQUEST, "name a user or a client")
        return [] if target.session else self.manager.find(target.user, target.client)

    async def subscribe(self, request: requests.SubscribeRequest) -> dict[str, Any]:
        """Subscribe a user's connections to a channel."""
        self._options(request.channel)
        grant = ServerSubscription(
            request.channel_info(),
            request.subscription_data(),
            request.override.options() if request.override else None,
        )
        since = request.recover_since
        position = StreamPosition(since.offset, since.epoch) if since else None
        errors = [
            connection.client.subscribe_by_server(request.channel, grant, position)
            for connection in self._find(request)
        ]
        # One of the user's connections that is full doesn't keep the others out.
        for error in filter(None, errors):
            raise APIError(error)
        return {}

    async def unsubscribe(self, request: requests.UnsubscribeRequest) -> dict[str, Any]:
        """End a user's subscriptions to a channel."""
        self._options(request.channel)
        for connection in self._find(request):
            connection.client.unsubscribe_by_server(request.channel, codes.UNSUBSCRIBED_BY_SERVER)
        return {}

    async def disconnect(self, request: requests.DisconnectRequest) -> dict[str, Any]:
        """Close a user's connections, for good unless the code says otherwise."""
        asked = request.disconnect or request
        disconnect = codes.FORCE_DISCONNECT
        if asked.code:
            if not asked.code >= 3000:
                raise APIError(codes.BAD_REQUEST, "a disconnect code is 3000 to 4999")
            known = {known.code: known for known in codes.DISCONNECTS}
            disconnect = known.get(
                asked.code, Disconnect(asked.code, "disconnected", "the server API asked for it")
            )
        if asked.reason:
            disconnect = replace(disconnect, reason=asked.reason)
        self.manager.disconnect(self._find(request), disconnect, request.whitelist)
        return {}

    async def refresh(self, request: requests.RefreshRequest) -> dict[str, Any]:
        """Set when a user's connections expire; 0 for never."""
        now = time.time()
        for connection in self._find(request):
            if request.expired or (request.expire_at and request.expire_at <= now):
                connection.disconnect(codes.CONNECTION_EXPIRED)
            else:
                connection.refresh(request.expire_at - now if request.expire_at else None)
        return {}

    async def presence(self, request: requests.ChannelRequest) -> dict[str, Any]:
        """Who is in a channel."""
        self._need_presence(request.channel)
        clients = self.services.presence.clients(request.channel)
        return {"presence": {client: orjson.Fragment(info) for client, info in clients.items()}}

    async def presence_stats(self, request: requests.ChannelRequest) -> dict[str, Any]:
        """How many are in a channel."""
        self._need_presence(request.channel)
        stats = self.services.presence.stats(request.channel)
        return {"num_clients": stats.num_clients, "num_users": stats.num_users}

    def _need_presence(self, channel: str) -> None:
        if not self._options(channel).presence:
            raise APIError(codes.NOT_AVAILABLE, "the channel has no presence")

    def _need_history(self, channel: str) -> ChannelOptions:
        options = self._options(channel)
        if not options.keeps_history:
            raise APIError(codes.NOT_AVAILABLE, "the channel has no history")
        return options

    async def history(self, request: requests.HistoryRequest) -> dict[str, Any]:
        """A channel's publications; with limit 0 its position only."""
        options = self._need_history(request.channel)
        limit = request.limit if 0 <= request.limit <= HISTORY_LIMIT_MAX else HISTORY_LIMIT_MAX
        since = request.since
        found = await self.services.streams.history(
            request.channel,
            options,
            limit,
            StreamPosition(since.offset, since.epoch) if since else None,
            request.reverse,
        )
        if isinstance(found, ErrorCode):
            raise APIError(found)
        publications, top = found
        return {
            "publications": [orjson.Fragment(pub) for pub in publications],
            "offset": top.offset,
            "epoch": top.epoch,
        }

    async def history_remove(self, request: requests.ChannelRequest) -> dict[str, Any]:
        """Remove a channel's publications; its offsets go on."""
        self._need_history(request.channel)
        await self.services.streams.clear(request.channel)
        self.services.hub.forget_tail(request.channel)
        return {}

    async def channels_(self, request: requests.ChannelsRequest) -> dict[str, Any]:
        """The channels with subscribers, and how many."""
        counts = self.services.hub.channels(request.pattern)
        return {"channels": {name: {"num_clients": count} for name, count in counts.items()}}

    async def info(self, request: requests.InfoRequest) -> dict[str, Any]:
        """What runs."""
        counts = self.services.hub.channels()
        return {
            "nodes": [
                {
                    "uid": self.node,
                    "name": "capegate",
                    "version": self.version,
                    "num_clients": self.manager.num_clients,
                    "num_users": self.manager.num_users,
                    "num_channels": len(counts),
                    "num_subs": sum(counts.values()),
                    "uptime": int(time.monotonic() - self.started_at),
                }
            ]
        }


_Method = tuple[type[requests.Request], Callable[[ServerAPI, Any], Awaitable[dict[str, Any]]]]
METHODS: Final[Mapping[str, _Method]] = {
    "publish": (requests.PublishRequest, ServerAPI.publish),
    "broadcast": (requests.BroadcastRequest, ServerAPI.broadcast),
    "subscribe": (requests.SubscribeRequest, ServerAPI.subscribe),
    "unsubscribe": (requests.UnsubscribeRequest, ServerAPI.unsubscribe),
    "disconnect": (requests.DisconnectRequest, ServerAPI.disconnect),
    "refresh": (requests.RefreshRequest, ServerAPI.refresh),
    "presence": (requests.ChannelRequest, ServerAPI.presence),
    "presence_stats": (requests.ChannelRequest, ServerAPI.presence_stats),
    "history": (requests.HistoryRequest, ServerAPI.history),
    "history_remove": (requests.ChannelRequest, ServerAPI.history_remove),
    "channels": (requests.ChannelsRequest, ServerAPI.channels_),
    "info": (requests.InfoRequest, ServerAPI.info),
}


def _error(error: APIError) -> dict[str, Any]:
    return {"code": error.error.code, "message": str(error)}


async def _call(api: ServerAPI, method: str, body: Any) -> dict[str, Any]:
    """Run one method; raises `APIError`, also for what nobody thought of."""
    code = 0
    try:
        model, function = METHODS[method]
        return await function(api, model.model_validate(body))
    except APIError as error:
        code = error.error.code
        raise
    except ValidationError as error:
        code = codes.BAD_REQUEST.code
        raise APIError(codes.BAD_REQUEST, _explain(error)) from None
    except requests.UnusableData as error:
        code = codes.BAD_REQUEST.code
        raise APIError(codes.BAD_REQUEST, f"bad request: {error}") from None
    except LogUnavailable:
        code = codes.INTERNAL.code
        raise APIError(codes.INTERNAL, "the database does not answer; try again") from None
    except Exception:
        # The other commands of a batch were carried out, and their replies must not be lost.
        logger.exception("a server API request failed: %s", method)
        code = codes.INTERNAL.code
        raise APIError(codes.INTERNAL) from None
    finally:
        instruments.API_REQUESTS.labels(method, str(code)).inc()


def _explain(error: ValidationError) -> str:
    """What is wrong with a body, without repeating what was in it."""
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    ]
    return "bad request: " + "; ".join(problems[:5])


async def _batch(api: ServerAPI, body: Any) -> dict[str, Any]:
    """Run several commands, one after the other or at once; a reply for each, in order."""
    try:
        request = requests.BatchRequest.model_validate(body)
    except ValidationError as error:
        raise APIError(codes.BAD_REQUEST, _explain(error)) from None

    async def one(command: dict[str, Any]) -> dict[str, Any]:
        try:
            if len(command) != 1 or next(iter(command)) not in METHODS:
                raise APIError(codes.METHOD_NOT_FOUND)
            method, inner = next(iter(command.items()))
            return {method: await _call(api, method, inner)}
        except APIError as error:
            return {"error": _error(error)}

    if request.parallel:
        return {"replies": await asyncio.gather(*map(one, request.commands))}
    return {"replies": [await one(command) for command in request.commands]}


def setup_api(
    app: web.Application, api: ServerAPI, *, key: str | None, insecure: bool = False
) -> None:
    """Add the routes. Without a key and not `insecure`, every request is refused."""

    async def handle(request: web.Request) -> web.Response:
        if not insecure and not _key_is_good(request, key):
            detail = "send the server API's key in the header X-API-Key"
            if key is None:
                detail = "the server API is off: set api_key"
            return _problem(401, "Unauthorized", detail)
        method = request.match_info["method"]
        if method not in METHODS and method != "batch":
            return _problem(404, "Not Found", f"there is no method {method!r}")
        try:
            body = orjson.loads(await request.read() or b"{}")
        except orjson.JSONDecodeError as error:
            return _problem(400, "Bad Request", f"the body is not JSON: {error}")
        except web.HTTPRequestEntityTooLarge as error:
            return _problem(413, "Content Too Large", error.text or "")
        except web.RequestPayloadError:
            return _problem(400, "Bad Request", "the body isn't in its Content-Encoding")
        except ConnectionError:
            return web.Response(status=400)  # nobody is there to read it
        try:
            if method == "batch":
                answer = await _batch(api, body)
            else:
                answer = {"result": await _call(api, method, body)}
        except APIError as error:
            answer = {"error": _error(error)}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    app.router.add_post("/api/{method}", handle)


def _key_is_good(request: web.Request, key: str | None) -> bool:
    """Look for the key where Centrifugo does; compare in constant time."""
    if key is None:
        return False
    given = request.headers.get("X-API-Key", "")
    if not given:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        given = value.strip() if scheme.lower() == "apikey" else ""
    if not given:
        given = request.query.get("api_key", "")
    return hmac.compare_digest(given.encode(errors="replace"), key.encode())


def _problem(status: int, title: str, detail: str) -> web.Response:
    """A problem document (RFC 9457)."""
    return web.Response(
        status=status,
        body=orjson.dumps(
            {"type": "about:blank", "title": title, "status": status, "detail": detail}
        ),
        content_type="application/problem+json",
    )
