"""The composition root: builds everything, and owns the order of start and stop."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway import logs
from gateway.acceptance import AcceptControl
from gateway.auth import TokenVerifier, mint
from gateway.broker.memory import MemoryBroker
from gateway.connection import Services
from gateway.connections import ConnectionLimits, ConnectionManager
from gateway.drain import Drain
from gateway.gate import WEBSOCKET_PATH, Gate, Reception, upgrade_route
from gateway.hub import Hub
from gateway.janitor import Janitor
from gateway.listener import accept_queue, accepting
from gateway.presence import Presence
from gateway.protocol.actions import ClientRules
from gateway.protocol.backoff import RetentionBounds
from gateway.protocol.handshake import OriginPolicy
from gateway.protocol.health import DeadlineBounds, Quality
from gateway.protocol.permissions import ChannelRules
from gateway.protocol.session import TailLimits
from gateway.publisher import Publisher
from gateway.resume_tokens import KEY_BYTES, ResumeTokens
from gateway.rpc import Procedures
from gateway.saved_sessions import SavedSessions
from gateway.session_connection import SessionConnection
from gateway.sessions import SessionLimits, Sessions
from gateway.settings import Settings
from gateway.streams import StreamLimits, Streams
from gateway.wheel import Wheel
from handlers.api import ServerAPI, setup_api
from handlers.dev import setup_dev
from handlers.health import Health, setup_health
from handlers.metrics import setup_metrics
from handlers.pages import setup_pages
from metrics import instruments
from store.embedded import EmbeddedServer
from store.embedded_errors import EmbeddedServerError
from store.migrate import MigrationError, upgrade
from store.pool import Database, DatabaseError
from store.sessions import session_key

logger = logging.getLogger(__name__)

BODY_MAX_BYTES: Final = 16 * 1024 * 1024  # of a server API request: a broadcast to many channels
EMBEDDED_CHECK_INTERVAL: Final = 1.0  # seconds
SCRAPE_PING_TIMEOUT: Final = 1.0  # seconds; Prometheus itself waits for ten
KEEPALIVE_TIMEOUT: Final = 75.0  # seconds an HTTP connection may idle; what nginx does
HTTP_SHUTDOWN_TIMEOUT: Final = 3.0  # seconds for requests under way when stopping
VERSION: Final = distribution_version("capegate")
# Many long-lived objects make full collections long; nothing here makes cycles per message or per
# connection, so collections may be rare (docs/decisions/0005-garbage-collection.md).
GC_THRESHOLDS: Final = (50_000, 20, 100)


class StartError(Exception):
    """Why the gateway can't start, in one line that says what to do."""


def serve(settings: Settings) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code. Raises `StartError`."""
    logs.configure(settings)
    _raise_file_limit()
    try:
        import uvloop  # noqa: PLC0415  there is none for Windows
    except ImportError:  # Windows
        return asyncio.run(_serve(settings))
    return uvloop.run(_serve(settings))


def _raise_file_limit() -> None:
    """Allow as many open sockets as the system lets us; the usual soft limit is 1,024."""
    try:
        import resource  # noqa: PLC0415  there is none on Windows
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal_number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_bind(settings.host, settings.port))
        internal = None
        if settings.internal_port is not None:
            internal = stack.enter_context(_bind(settings.host, settings.internal_port))
        database = await stack.enter_async_context(_database(settings))
        gateway = await stack.enter_async_context(_gateway(settings, database))
        # What was made so far lives for ever, or as long as a session: let no collection look at it
        # again. And let nobody be there yet who would wait for this one.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stack.enter_async_context(_listen(settings, gateway, listener, internal))
        _say_where(settings, listener, internal)
        await stop.wait()
        logger.info("stopping")
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before anything slow is started. Raises `StartError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"Can't listen on {host}: {error.strerror}. Correct --host.") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = "the port is in use; stop what uses it or choose another with --port"
        else:
            reason = f"{error.strerror}; choose another address with --host and --port"
        raise StartError(f"Can't listen on {host} port {port}: {reason}.") from error
    return listener


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """The database, embedded or not, with the schema it should have."""
    server = None
    try:
        if settings.database_url is None:
            server = EmbeddedServer(Path(settings.data_dir))
            url = await asyncio.to_thread(server.start)
        else:
            url = settings.database_url.get_secret_value()
        for revision in await upgrade(url):
            logger.info("migrated the database to %s", revision)
        database = await Database.open(url, pool_max=settings.database_pool_max)
    except (EmbeddedServerError, DatabaseError, MigrationError) as error:
        if server is not None:
            await asyncio.to_thread(server.stop)
        raise StartError(str(error)) from error
    watch = None
    if server is not None:
        watch = asyncio.create_task(_keep_running(server, url), name="embedded database")
    try:
        yield database
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await database.close()
        if server is not None:
            await asyncio.to_thread(server.stop)


async def _keep_running(server: EmbeddedServer, url: str) -> None:
    """Start the embedded server again when it dies; nobody else would."""
    while True:
        await asyncio.sleep(EMBEDDED_CHECK_INTERVAL)
        if server.is_running():
            continue
        logger.error("the embedded PostgreSQL has ended; starting it again")
        try:
            if await asyncio.to_thread(server.start) != url:
                logger.error("the embedded PostgreSQL's socket has moved: restart the gateway")
        except EmbeddedServerError as error:
            logger.error("%s", error)  # tried again soon


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that the listeners need."""

    services: Services
    manager: ConnectionManager
    drain: Drain
    database: Database
    health: Health
    node: str


@contextlib.asynccontextmanager
async def _gateway(settings: Settings, database: Database) -> AsyncIterator[Gateway]:
    """Everything between the listener and the database, started and, at the end, stopped."""
    loop = asyncio.get_running_loop()
    node = uuid.uuid4().hex
    acceptance = AcceptControl(loop, settings.accept_rate_max)
    lag = LoopLag(acceptance)
    wheel = Wheel(loop, lag.observe)
    hub = Hub(loop, settings.compression_min_bytes)
    broker = MemoryBroker(hub)
    streams = Streams(
        database, _stream_limits(settings), broker.publish_committed, hub.check_positions, node
    )
    hub.use(streams)
    services = Services(
        loop=loop,
        rules=_client_rules(settings),
        hub=hub,
        streams=streams,
        publisher=Publisher(streams, broker, settings.idempotency_window),
        presence=Presence(),
        verifier=TokenVerifier(settings),
        procedures=Procedures(),
        wheel=wheel,
        acceptance=acceptance,
        close_timeout=settings.close_timeout,
        slow_reader_timeout=settings.slow_reader_timeout,
        deadline_bounds=DeadlineBounds(settings.ping_deadline_min, settings.ping_deadline_max),
    )
    async with database.pool.acquire() as connection:
        key = await session_key(connection, os.urandom(KEY_BYTES))
    name = settings.node_name or f"{socket.gethostname()}:{settings.port}"
    sessions: Sessions[SessionConnection] = Sessions(
        ResumeTokens(key, name), _session_limits(settings)
    )
    manager = ConnectionManager(services, _connection_limits(settings), sessions)
    saved = SavedSessions(database, services, manager, name)
    drain = Drain(services, manager, saved, settings.restart_time)
    janitor = Janitor(
        database,
        settings.namespaces(),
        node,
        settings.stream_ttl,
        settings.idempotency_window,
    )
    instruments.BUILD.labels(VERSION).set(1)
    await streams.start()
    await services.verifier.start()
    wheel.start()
    taken_up = await saved.take_up()
    if taken_up:
        logger.info("took up %d sessions of the former process", taken_up)
    periodic = [
        loop.create_task(manager.run(), name="sessions"),
        loop.create_task(janitor.run(settings.janitor_interval), name="janitor"),
        loop.create_task(_check_positions(hub, settings.position_check_interval), name="positions"),
    ]
    health = Health(database, lambda: lag.last, lambda: manager.stopping, VERSION)
    try:
        yield Gateway(services, manager, drain, database, health, node)
    finally:
        for task in periodic:
            task.cancel()
        await asyncio.gather(*periodic, return_exceptions=True)
        await services.stop()
        await streams.stop()
        await hub.stop()
        wheel.stop()
        await services.verifier.close()


class LoopLag:
    """How late the loop was with its last timer, the histogram of that, and who slows down then."""

    def __init__(self, acceptance: AcceptControl) -> None:
        self._acceptance = acceptance
        self.last = 0.0

    def observe(self, lag: float) -> None:
        """Take a measurement in seconds."""
        self.last = lag
        instruments.LOOP_LAG.observe(lag)
        self._acceptance.observe_lag(lag)


async def _check_positions(hub: Hub, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        hub.check_positions()


@contextlib.asynccontextmanager
async def _listen(
    settings: Settings,
    gateway: Gateway,
    listener: socket.socket,
    internal: socket.socket | None,
) -> AsyncIterator[None]:
    """Take connections; at the end, stop taking new ones before anything else stops."""
    loop = asyncio.get_running_loop()
    application = web.Application(client_max_size=BODY_MAX_BYTES)
    inner = application if internal is None else web.Application(client_max_size=BODY_MAX_BYTES)
    runner = _runner(application)
    reception = Reception(
        loop=loop,
        manager=gateway.manager,
        acceptance=gateway.services.acceptance,
        wheel=gateway.services.wheel,
        http=lambda: _http_protocol(runner),
        origins=OriginPolicy(frozenset(settings.allowed_origins)),
        deflate=settings.compression,
        handshake_timeout=settings.handshake_timeout,
        trusted_proxies=tuple(settings.trusted_proxies),
    )
    gateway.services.acceptance.watch(lambda: accept_queue(listener))
    application.router.add_route("*", WEBSOCKET_PATH, upgrade_route(reception))
    _add_routes(application, inner, settings, gateway)
    await runner.setup()
    inner_runner = _runner(inner)
    try:
        async with accepting(listener, lambda: Gate(reception)):
            if internal is not None:
                await inner_runner.setup()
                await web.SockSite(inner_runner, internal).start()
            yield
    finally:
        # Clients first, so that what they published last is answered; then requests, then the log.
        await gateway.drain.run(settings.shutdown_timeout)
        await runner.cleanup()
        if internal is not None:
            await inner_runner.cleanup()


def _runner(application: web.Application) -> web.AppRunner:
    return web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_TIMEOUT,
        shutdown_timeout=HTTP_SHUTDOWN_TIMEOUT,
    )


def _http_protocol(runner: web.AppRunner) -> asyncio.Protocol:
    server = runner.server
    assert server is not None, "set up before the first connection"
    return server()


def _add_routes(
    application: web.Application, inner: web.Application, settings: Settings, gateway: Gateway
) -> None:
    services = gateway.services
    setup_pages(application)
    # Only our own secret can sign here; with public keys alone there is nothing to mint with.
    if settings.development and settings.token_hmac_secret is not None:
        setup_dev(application, lambda user: mint(settings, user))
    setup_health(application, gateway.health)
    if inner is not application:
        setup_health(inner, gateway.health)
    setup_metrics(inner, lambda: _refresh_gauges(gateway))
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    api = ServerAPI(
        services=services,
        manager=gateway.manager,
        channels=services.rules.channels,
        node=gateway.node,
        version=VERSION,
        started_at=time.monotonic(),
    )
    setup_api(inner, api, key=key, insecure=settings.api_insecure)


async def _refresh_gauges(gateway: Gateway) -> None:
    await gateway.database.ping(SCRAPE_PING_TIMEOUT)
    statistics = gateway.database.statistics()
    instruments.DATABASE_UP.set(1 if gateway.database.healthy() else 0)
    instruments.DATABASE_CONNECTIONS.labels("idle").set(statistics.idle)
    instruments.DATABASE_CONNECTIONS.labels("used").set(statistics.open - statistics.idle)
    lines = Counter(conn.quality for conn in gateway.manager.with_session if not conn.detached)
    for quality in Quality:
        instruments.LINES.labels(quality.value).set(lines[quality])
    streams = gateway.services.streams
    instruments.PUBLISH_QUEUE.set(streams.queued)
    instruments.PUBLISH_QUEUE_BYTES.set(streams.queued_bytes)


def _client_rules(settings: Settings) -> ClientRules:
    return ClientRules(
        channels=ChannelRules(
            settings.namespaces(), settings.channel_length_max, settings.insecure
        ),
        version=VERSION,
        ping_interval=settings.ping_interval,
        pong_timeout=settings.pong_timeout,
        stale_close_delay=settings.stale_close_delay,
        expiry_grace=settings.expiry_grace,
        channels_max=settings.channels_per_client_max,
        commands_per_second=settings.commands_per_second,
        commands_burst=settings.commands_burst,
        allow_anonymous=settings.allow_anonymous,
        insecure=settings.insecure,
        personal_channel=settings.user_personal_channel,
    )


def _stream_limits(settings: Settings) -> StreamLimits:
    return StreamLimits(
        publish_timeout=settings.publish_timeout,
        publish_queue_max=settings.publish_queue_max,
        publish_queue_max_bytes=settings.publish_queue_max_bytes,
        publish_batch_max=settings.publish_batch_max,
        idempotency_window=settings.idempotency_window,
        recovery_page=settings.recovery_page,
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        connections_max=settings.connections_max,
        connections_per_address_max=settings.connections_per_address_max,
        connections_per_user_max=settings.connections_per_user_max,
        strangers_per_address_max=settings.unauthenticated_per_address_max,
        message_size_max_bytes=settings.message_size_max_bytes,
        write_buffer_high_bytes=settings.write_buffer_high_bytes,
    )


def _session_limits(settings: Settings) -> SessionLimits:
    return SessionLimits(
        tail=TailLimits(settings.session_tail_max_frames, settings.session_tail_max_bytes),
        retention=RetentionBounds(settings.session_retention_min, settings.session_retention_max),
        # A client calls a line dead when no ping came for as long as an answer may take.
        detection=settings.ping_interval + settings.ping_deadline_max,
        stable=settings.session_stable,
        sessions_max=settings.sessions_max,
        detached_per_address_max=settings.detached_sessions_per_address_max,
        memory_max_bytes=settings.session_memory_max_bytes,
    )


def _command() -> str:
    """How the person who started this would call it again from the same folder."""
    if Path(sys.argv[0]).name != "__main__.py":
        return sys.argv[0]
    return f"{os.path.relpath(sys.executable)} -m gateway"


def _say_where(settings: Settings, listener: socket.socket, internal: socket.socket | None) -> None:
    """Print where to look. Goes to stdout; log lines go to stderr."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    base = f"http://{shown}:{port}"
    inner = base if internal is None else f"http://{shown}:{internal.getsockname()[1]}"
    database = "embedded in " + str(Path(settings.data_dir).resolve())
    lines = [
        f"capegate {VERSION} is ready",
        f"  chat page   {base}/",
        f"  WebSocket   {base.replace('http', 'ws', 1)}{WEBSOCKET_PATH}",
        f"  server API  {inner}/api/<method>",
        f"  metrics     {inner}/metrics",
        f"  health      {base}/api/health",
        f"  database    {database if settings.database_url is None else 'DATABASE_URL'}",
        f"  a token     {_command()} token --user alice",
    ]
    if settings.development:
        lines.append("  development mode: anyone who can reach this port gets a token")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
