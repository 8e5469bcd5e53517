"""Every instrument, declared once.

No label has values without a bound: methods, codes, classes and outcomes come from closed sets, and
channels, users and addresses are never labels. `docs/metrics.md` lists them; a test holds it to
this module. Buckets are in seconds unless the name says otherwise.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from metrics.loop_instruments import LoopCounter, LoopHistogram

# A second series beside every counter and histogram, which nobody here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY: Final = CollectorRegistry(auto_describe=True)

# From a write on loopback to a database that is badly behind.
_LATENCY_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
# With edges at what the event loop aims at: 50 ms, and 100 ms for the 99th percentile.
_LAG_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZE_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

CONNECTIONS: Final = Gauge("capegate_connections", "Open WebSocket connections.", registry=REGISTRY)
CLIENTS: Final = Gauge(
    "capegate_clients", "Connections whose connect command succeeded.", registry=REGISTRY
)
SUBSCRIPTIONS: Final = Gauge(
    "capegate_subscriptions", "Live subscriptions of all clients.", registry=REGISTRY
)
CHANNELS: Final = Gauge(
    "capegate_channels", "Channels with at least one subscription here.", registry=REGISTRY
)
HANDSHAKES: Final = LoopCounter(
    "capegate_handshakes_total",
    "Requests to open a WebSocket, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
COMMANDS: Final = LoopCounter(
    "capegate_commands_total", "Commands from clients, by method.", ["method"], registry=REGISTRY
)
COMMAND_ERRORS: Final = Counter(
    "capegate_command_errors_total",
    "Error replies to clients, by method and error code.",
    ["method", "code"],
    registry=REGISTRY,
)
DISCONNECTS: Final = Counter(
    "capegate_disconnects_total",
    "Connections that ended, by close code; 'lost' is an end without a close frame.",
    ["code"],
    registry=REGISTRY,
)
API_REQUESTS: Final = Counter(
    "capegate_api_requests_total",
    "Server API requests, by method and by error code (0 for success).",
    ["method", "code"],
    registry=REGISTRY,
)
PUBLICATIONS: Final = LoopCounter(
    "capegate_publications_total",
    "Publications taken in, by class: durable, transient (no history) or ephemeral.",
    ["kind"],
    registry=REGISTRY,
)
DELIVERIES: Final = LoopCounter(
    "capegate_deliveries_total",
    "Publications, joins and leaves written to subscribers.",
    [],
    registry=REGISTRY,
)
DROPS: Final = Counter(
    "capegate_drops_total",
    "Messages not written to a subscriber that reads too slowly, by class.",
    ["kind"],
    registry=REGISTRY,
)
DEMOTIONS: Final = Counter(
    "capegate_demotions_total",
    "Subscriptions set to catch up from the log because their reader was slow.",
    registry=REGISTRY,
)
RECOVERIES: Final = Counter(
    "capegate_recoveries_total",
    "Subscriptions that asked to recover, by result.",
    ["recovered"],
    registry=REGISTRY,
)
LOG_READS: Final = Counter(
    "capegate_log_reads_total",
    "Reads of the publication log, by what answered: tail and cache are in memory.",
    ["source"],
    registry=REGISTRY,
)
PUBLISH_TO_COMMIT: Final = Histogram(
    "capegate_publish_to_commit_seconds",
    "From taking a publication in to its commit; the oldest of each batch.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
COMMIT_TO_WRITE: Final = Histogram(
    "capegate_commit_to_write_seconds",
    "From a batch's commit until its last publication was written to the last live subscriber.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
BATCH_SIZE: Final = Histogram(
    "capegate_commit_batch_publications",
    "Publications in one commit.",
    buckets=_SIZE_BUCKETS,
    registry=REGISTRY,
)
COMMIT_RETRIES: Final = Counter(
    "capegate_commit_retries_total",
    "Commits tried again because the database was away.",
    registry=REGISTRY,
)
PUBLISH_QUEUE: Final = Gauge(
    "capegate_publish_queue_publications", "Publications waiting for a commit.", registry=REGISTRY
)
PUBLISH_QUEUE_BYTES: Final = Gauge(
    "capegate_publish_queue_bytes", "Payload bytes waiting for a commit.", registry=REGISTRY
)
PAUSED_CONNECTIONS: Final = Gauge(
    "capegate_paused_connections",
    "Connections whose write buffer is over its high-water mark.",
    registry=REGISTRY,
)
WRITE_PAUSES: Final = Counter(
    "capegate_write_pauses_total",
    "Times that a connection's write buffer went over its high-water mark.",
    registry=REGISTRY,
)
SESSIONS: Final = Gauge(
    "capegate_sessions",
    "Sessions, by state: attached to a socket, or detached and waiting for their client.",
    ["state"],
    registry=REGISTRY,
)
SESSION_MEMORY: Final = Gauge(
    "capegate_session_memory_bytes",
    "What sessions hold in memory at most; frames that several share are counted in each.",
    registry=REGISTRY,
)
SESSION_OPENS: Final = Counter(
    "capegate_session_opens_total", "Sessions that began.", registry=REGISTRY
)
SESSION_RESUMES: Final = Counter(
    "capegate_session_resumes_total",
    "Attempts to resume a session, by outcome: resumed, or why it was gone.",
    ["outcome"],
    registry=REGISTRY,
)
SESSION_ENDS: Final = Counter(
    "capegate_session_ends_total",
    "Sessions that ended by themselves: left by their client, expired, or overflowed.",
    ["reason"],
    registry=REGISTRY,
)
SESSION_EVICTIONS: Final = Counter(
    "capegate_session_evictions_total",
    "Detached sessions that were ended early to make room, the oldest first.",
    registry=REGISTRY,
)
SESSION_OVERFLOWS: Final = Counter(
    "capegate_session_overflows_total",
    "Times that a session held more unacknowledged frames than it may, and dropped them.",
    registry=REGISTRY,
)
SESSION_REPLAYED: Final = Counter(
    "capegate_session_replayed_frames_total",
    "Frames that were sent again to a client that resumed.",
    registry=REGISTRY,
)
SESSION_VIOLATIONS: Final = Counter(
    "capegate_session_violations_total",
    "Session frames that broke the protocol; the session ended.",
    registry=REGISTRY,
)
SESSIONS_SAVED: Final = Counter(
    "capegate_sessions_saved_total",
    "Sessions that this process left for the next one when it stopped.",
    registry=REGISTRY,
)
SESSIONS_TAKEN_UP: Final = Counter(
    "capegate_sessions_taken_up_total",
    "Sessions that this process took up from the former one when it started.",
    registry=REGISTRY,
)
ROUND_TRIP: Final = LoopHistogram(
    "capegate_round_trip_seconds",
    "Smoothed round trips of health pings on sessions.",
    buckets=_LATENCY_BUCKETS,
    registry=REGISTRY,
)
LINES: Final = Gauge(
    "capegate_lines",
    "Attached sessions by the quality of their line.",
    ["quality"],
    registry=REGISTRY,
)
LOOP_LAG: Final = Histogram(
    "capegate_loop_lag_seconds",
    "How late the event loop ran a timer that was due.",
    buckets=_LAG_BUCKETS,
    registry=REGISTRY,
)
LOOP_STALLS: Final = Counter(
    "capegate_loop_stalls_total",
    "Times that the event loop stood still so long that deadlines were moved.",
    registry=REGISTRY,
)
LOOP_STALL_SECONDS: Final = Counter(
    "capegate_loop_stall_seconds_total",
    "For how long it stood still then.",
    registry=REGISTRY,
)
ACCEPT_RATE: Final = Gauge(
    "capegate_accept_rate",
    "Clients per second that get reconnect slots, as measured, by how they come.",
    ["kind"],
    registry=REGISTRY,
)
ARRIVALS_WAITING: Final = Gauge(
    "capegate_arrivals_waiting",
    "Connections in the kernel's line, upgrades and first messages that wait for their turn.",
    registry=REGISTRY,
)
ACCEPT_BACKLOG: Final = Gauge(
    "capegate_accept_backlog_seconds",
    "For how long from now reconnect slots are given out.",
    registry=REGISTRY,
)
ACCEPT_REFUSALS: Final = Counter(
    "capegate_accept_refusals_total",
    "Arrivals sent away for want of capacity, by how they came.",
    ["kind"],
    registry=REGISTRY,
)
RECONNECT_SLOTS: Final = Counter(
    "capegate_reconnect_slots_total",
    "Moments told to clients at which to come back, and how they came.",
    ["event"],
    registry=REGISTRY,
)
DATABASE_UP: Final = Gauge(
    "capegate_database_up", "1 while the database answers.", registry=REGISTRY
)
DATABASE_CONNECTIONS: Final = Gauge(
    "capegate_database_connections",
    "Pooled database connections, by state.",
    ["state"],
    registry=REGISTRY,
)
BUILD: Final = Gauge(
    "capegate_build_info", "Always 1; the version is the label.", ["version"], registry=REGISTRY
)
