"""Every setting: its unit, its default, and the default's reason.

Values come from a TOML file, environment variables over it (`GATEWAY_<NAME>`; `DATABASE_URL`,
`REDIS_URL` and `PORT` too, as platforms set them), and the command line over both. Durations are
seconds, or text with a unit ("300s", "10m", "7d"). Fields are checked in the order in which they
stand, so a check that compares two of them belongs to the later one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from gateway.protocol.channels import ChannelOptions, Namespaces
from gateway.settings_channels import (
    DEVELOPMENT_CHANNEL,
    DEVELOPMENT_NAMESPACE,
    ChannelSettings,
    NamespaceSettings,
)
from gateway.settings_sources import DEFAULT_SOURCE, Problem, SettingsError, explain, gather
from gateway.settings_values import (
    MODEL_CONFIG,
    ApiKey,
    AsJson,
    AsList,
    Count,
    CountAboveZero,
    Duration,
    DurationOrZero,
    FilePath,
    HmacSecret,
    HttpUrl,
    Moment,
    Network,
    Number,
    Origin,
    PemText,
    Port,
    PostgresUrl,
    RedisUrl,
    Seconds,
    Whole,
    render,
)

__all__ = [
    "ChannelSettings",
    "NamespaceSettings",
    "Problem",
    "Settings",
    "SettingsError",
    "load",
]


class Settings(BaseModel):
    """What this process was told. Made once by `load`, never changed.

    Raises pydantic's ValidationError when made by hand with values that don't fit; neither that
    error nor the repr holds a secret.
    """

    model_config = MODEL_CONFIG

    # Where it runs

    development: bool = False
    """For work on one machine: tokens from `/dev/token`, open channels for the demo page. Off,
    because each of these would be a hole in production."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on. Only this machine by default, so that nothing is exposed by
    accident; a container needs "0.0.0.0"."""

    port: Port = 8000
    """The TCP port to listen on; 0 takes any free one. 8000 is what people try first."""

    internal_port: Port | None = None
    """A second port for the server API and metrics, which then aren't on the first one. Not set,
    because one port is simpler; set it where the first one is open to the world."""

    data_dir: FilePath = Path("data")
    """The folder of the embedded database and of the secrets made at the first start. Relative to
    where the process was started."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged. At "info" a connection leaves no line."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """How log lines look. "auto" is "console" on a terminal and "json" elsewhere."""

    shutdown_timeout: Duration = 10.0
    """How long a stop may take before what is left is cut. Platforms kill 10 to 30 s after
    SIGTERM."""

    # Database and broker

    database_url: PostgresUrl | None = None
    """The PostgreSQL database, as postgresql://…. Not set: an embedded one in `data_dir`."""

    database_pool_max: CountAboveZero = 8
    """Database connections of this process. One writes, the rest read; more than a few per core of
    the database don't make it faster."""

    redis_url: RedisUrl | None = None
    """The Redis or Valkey that connects several processes, as redis://…. Not set: PostgreSQL
    does."""

    # Who may connect

    allowed_origins: Annotated[tuple[Origin, ...], AsList] = ()
    """Origins whose pages may connect, such as "https://chat.example.com"; "*" allows every one.
    Empty allows the host's own, which is what a page served from here needs."""

    trusted_proxies: Annotated[tuple[Network, ...], AsList] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed. None, for anyone can write that
    header."""

    allow_anonymous: bool = False
    """Connections without a token are let in, with an empty user."""

    insecure: bool = False
    """No tokens are asked for and every operation is allowed. In development only."""

    connections_max: CountAboveZero = 100_000
    """Connections of this process; more are refused. About 500 MB at 5 KB each."""

    accept_rate_max: Count = 0
    """Clients accepted per second at most. 0: as many as was measured, which changes by itself with
    the machine and its load; set it where something behind this process can take less."""

    connections_per_address_max: Count = 0
    """Connections from one address. 0 sets no limit, for a whole office or mobile network may share
    one."""

    connections_per_user_max: Count = 0
    """Connections of one user. 0 sets no limit."""

    unauthenticated_per_address_max: Count = 10_000
    """Connections from one address that have not shown a valid token yet: a tenth of
    `connections_max`, so that no single address can take it all without one."""

    # Sessions

    node_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """What this process is called, the same before and after a restart: it finds the sessions of
    its predecessor by it. Not set: the host's name and the port."""

    sessions_max: Count = 200_000
    """Sessions of this process, those included that wait for their client. When it is reached,
    the one that has waited longest ends. 0 sets no limit."""

    detached_sessions_per_address_max: Count = 0
    """Sessions of one address that wait for their client; the one that has waited longest ends.
    0 sets no limit, for a whole office or mobile network may share one."""

    session_memory_max_bytes: Count = 268_435_456
    """What all sessions may hold in memory: 256 MiB. From half of it on less retention is promised;
    when it is reached those that have waited longest end. 0 sets no limit."""

    session_tail_max_frames: CountAboveZero = 1024
    """Frames that a session may hold for a client that hasn't acknowledged them."""

    session_tail_max_bytes: Annotated[Whole, Field(ge=4096)] = 262_144
    """The same limit in bytes: four messages of the longest kind, or some seconds of a busy
    room."""

    session_retention_min: Duration = 10.0
    """The least time that a session is kept without a socket, whatever its client declares."""

    session_retention_max: Duration = 300.0
    """The longest time that a session is kept without a socket. Who is away for longer recovers
    from history."""

    session_stable: Duration = 30.0
    """How long a connection must last before a client may start again with its shortest
    backoff."""

    ping_deadline_min: Duration = 2.0
    """The least time that the answer to a session's health ping may take. Phones sleep for a second
    or two."""

    ping_deadline_max: Duration = 10.0
    """The longest time that the answer to a session's health ping may take; each one's own deadline
    follows its round trips."""

    restart_time: DurationOrZero = 3.0
    """How long this process is expected to be away in a restart. Clients are told to come back
    after that, one slot after the other."""

    # A connection's times

    ping_interval: Duration = 25.0
    """Time between the server's pings. Proxies commonly cut lines that were idle for 30 to 60
    s."""

    pong_timeout: Duration = 8.0
    """How long a pong may take before the connection counts as lost; shorter than
    `ping_interval`. Slow mobile networks answer within a few seconds."""

    handshake_timeout: Duration = 10.0
    """How long a client may take to send its HTTP request's head."""

    stale_close_delay: Duration = 10.0
    """How long an open connection may take to send its `connect` command."""

    close_timeout: Duration = 5.0
    """How long the client may take to answer a close frame before the line is cut."""

    expiry_grace: DurationOrZero = 25.0
    """How long after its expiry a token may still be refreshed: one `ping_interval`."""

    slow_reader_timeout: Duration = 30.0
    """How long a client may leave its unread bytes above `write_buffer_high_bytes` before it is
    disconnected."""

    # A connection's limits

    message_size_max_bytes: Annotated[Whole, Field(ge=1024)] = 65_536
    """The longest message a client may send. What public SDKs and their servers use."""

    channels_per_client_max: CountAboveZero = 128
    """Channels of one connection, server-side subscriptions included. What public servers use."""

    channel_length_max: Annotated[Whole, Field(gt=0, le=1024)] = 255
    """The longest channel name, in characters. What public servers use."""

    commands_per_second: Annotated[Number, Field(gt=0)] = 200.0
    """Commands a connection may send in the long run. Far above what a person causes, far below
    what hurts others."""

    commands_burst: CountAboveZero = 1000
    """Commands a connection may send at once: a full reconnect with `channels_per_client_max`
    subscriptions, several times over."""

    write_buffer_high_bytes: Annotated[Whole, Field(ge=4096)] = 65_536
    """Unread bytes from which on a client counts as slow and gets less: what the event loop
    itself takes for its high-water mark."""

    compression: bool = False
    """Negotiates permessage-deflate. Off: it costs more CPU than all other work on a message."""

    compression_min_bytes: Count = 256
    """The shortest message worth compressing. Shorter ones hardly shrink without a context."""

    # Tokens

    token_rsa_public_key: PemText | None = None
    """The PEM public key of RS256, RS384 and RS512 tokens; at least 2048 bits."""

    token_ecdsa_public_key: PemText | None = None
    """The PEM public key of ES256, ES384 or ES512 tokens, as its curve says."""

    token_eddsa_public_key: PemText | None = None
    """The PEM public key of EdDSA tokens."""

    token_jwks_file: FilePath | None = None
    """A file with a JSON Web Key Set."""

    token_jwks_url: HttpUrl | None = None
    """Where a JSON Web Key Set is fetched from; instead of `token_jwks_file`."""

    token_hmac_secret: HmacSecret | None = None
    """The secret of HS256, HS384 and HS512 tokens; at least 32 bytes. Not set, and no other key
    either: one is made at the first start and kept in `data_dir`, if the database is embedded or
    in development; elsewhere several processes must agree on one, so it has to be set."""

    token_hmac_previous_secret: HmacSecret | None = None
    """The secret before the last change, honoured until `token_hmac_previous_until`."""

    token_hmac_previous_until: Moment | None = None
    """When the previous secret stops being honoured, as RFC 3339 or unix seconds."""

    token_jwks_refresh: Annotated[Seconds, Field(ge=10)] = 3600.0
    """How often the key set is read again. A key that is missing is looked for sooner, so this
    only says how long a removed one is honoured."""

    token_audience: Annotated[str, Field(min_length=1)] | None = None
    """What a token's `aud` must hold. Not set: not looked at."""

    token_issuer: Annotated[str, Field(min_length=1)] | None = None
    """What a token's `iss` must be. Not set: not looked at."""

    token_lifetime_max: Duration = 31_536_000.0
    """The furthest a token's `exp` may lie ahead: a year, so that a leaked one ends someday."""

    # The server API

    api_key: ApiKey | None = None
    """The key of the server API; at least 16 characters. Not set: one is made as for
    `token_hmac_secret`, and where none is made the server API refuses every call."""

    api_insecure: bool = False
    """The server API asks for no key. In development, or with an `internal_port` that only friends
    reach."""

    # Publishing and recovery

    publish_timeout: Duration = 5.0
    """How long a publication may wait to be committed before its publisher gets a temporary
    error."""

    publish_queue_max: CountAboveZero = 50_000
    """Publications that may wait to be committed; more get a temporary error. Some seconds of full
    load."""

    publish_queue_max_bytes: CountAboveZero = 67_108_864
    """The same limit in bytes: 64 MiB, so that a database that is down doesn't take the memory."""

    publish_batch_max: CountAboveZero = 1000
    """Publications in one commit. The gain of a larger batch is gone by some hundreds."""

    idempotency_window: DurationOrZero = 300.0
    """How long a repeated `idempotency_key` is recognised; longer than any sensible retry."""

    recovery_page: Annotated[Whole, Field(gt=0, le=10_000)] = 256
    """Publications in one page of a recovery; one page of each channel is in memory at a time."""

    position_check_interval: Duration = 40.0
    """How often a subscription's position is compared with the log, for a loss nobody noticed."""

    janitor_interval: Duration = 60.0
    """How often expired history is removed."""

    stream_ttl: Duration = 2_592_000.0
    """After how long without a publication a stream and its epoch are forgotten: 30 days; at least
    the longest `history_ttl`."""

    # Channels

    user_personal_channel: bool = False
    """Subscribes each user to a channel of their own, `#<user>`, when they connect."""

    channel: Annotated[ChannelSettings, AsJson] = ChannelSettings()
    """The options of channels without a namespace."""

    namespace_settings: Annotated[tuple[NamespaceSettings, ...], AsJson] = Field(
        default=(), alias="namespaces"
    )
    """The namespaces, each with a name and options."""

    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("internal_port")
    @classmethod
    def _ports_differ(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port and port == info.data.get("port"):
            raise ValueError("is the same as port; set another or leave it out")
        return port

    @field_validator("insecure")
    @classmethod
    def _insecure_is_for_development(cls, insecure: bool, info: ValidationInfo) -> bool:
        if insecure and info.data.get("development") is False:
            raise ValueError(
                "is only possible in development; set development too, or give clients tokens"
            )
        return insecure

    @field_validator("pong_timeout")
    @classmethod
    def _pong_before_next_ping(cls, timeout: float, info: ValidationInfo) -> float:
        interval = info.data.get("ping_interval")
        if interval is not None and timeout >= interval:
            raise ValueError(
                f"must be shorter than ping_interval ({render(interval)} s);"
                " lower it or raise ping_interval"
            )
        return timeout

    @field_validator("token_hmac_secret")
    @classmethod
    def _some_key_verifies_tokens(
        cls, secret: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        needed = ("development", "database_url", "allow_anonymous", *_TOKEN_KEYS[1:])
        if secret is not None or not all(name in info.data for name in needed):
            return secret
        made = info.data["development"] or info.data["database_url"] is None
        if not made and not any(info.data[name] for name in needed[2:]):
            raise ValueError(
                "is missing, and so is every other token key, so nobody could connect; set it"
                " (openssl rand -hex 32) or another token key, or set allow_anonymous"
            )
        return secret

    @field_validator("token_hmac_previous_secret")
    @classmethod
    def _secret_was_changed(
        cls, previous: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        if previous is not None and previous == info.data.get("token_hmac_secret"):
            raise ValueError("is the same as token_hmac_secret; set the one before it")
        return previous

    @field_validator("token_hmac_previous_until")
    @classmethod
    def _previous_secret_ends(cls, until: float | None, info: ValidationInfo) -> float | None:
        if "token_hmac_previous_secret" not in info.data:
            return until
        previous = info.data["token_hmac_previous_secret"]
        if previous is not None and until is None:
            raise ValueError(
                "is missing, so the previous secret would be honoured for ever;"
                " set when it ends, such as 2030-01-31T12:00:00Z"
            )
        if previous is None and until is not None:
            raise ValueError("has no effect without token_hmac_previous_secret; set both or none")
        return until

    @field_validator("token_rsa_public_key", "token_ecdsa_public_key", "token_eddsa_public_key")
    @classmethod
    def _key_is_usable(cls, pem: str | None, info: ValidationInfo) -> str | None:
        if pem is not None:
            # Late, because it takes longer than all the rest and most commands don't need it.
            from gateway.keys import Kind, parse_pem  # noqa: PLC0415

            kinds: dict[str | None, Kind] = {
                "token_rsa_public_key": "RSA",
                "token_ecdsa_public_key": "ECDSA",
                "token_eddsa_public_key": "EdDSA",
            }
            parse_pem(pem, kinds[info.field_name])
        return pem

    @field_validator("token_jwks_file")
    @classmethod
    def _key_set_is_usable(cls, path: Path | None) -> Path | None:
        if path is not None:
            from gateway.keys import parse_key_set  # noqa: PLC0415

            try:
                raw = path.read_bytes()
            except OSError as error:
                raise ValueError(
                    f"can't be read: {error.strerror}; correct the path or its permissions"
                ) from None
            parse_key_set(raw)
        return path

    @field_validator("token_jwks_url")
    @classmethod
    def _one_key_set(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None and info.data.get("token_jwks_file") is not None:
            raise ValueError("can't be set together with token_jwks_file; keep one of the two")
        return url

    @field_validator("api_insecure")
    @classmethod
    def _open_api_is_out_of_reach(cls, insecure: bool, info: ValidationInfo) -> bool:
        known = "development" in info.data and "internal_port" in info.data
        guarded = known and (info.data["development"] or info.data["internal_port"] is not None)
        if insecure and known and not guarded:
            raise ValueError(
                "would let everyone use the server API; set an api_key,"
                " or an internal_port that only friends reach"
            )
        return insecure

    @field_validator("publish_queue_max_bytes")
    @classmethod
    def _queue_holds_a_message(cls, limit: int, info: ValidationInfo) -> int:
        longest = info.data.get("message_size_max_bytes")
        if longest is not None and limit < longest:
            raise ValueError(
                f"must be at least message_size_max_bytes ({longest}); raise it or lower that"
            )
        return limit

    @field_validator("channel")
    @classmethod
    def _default_history_fits(
        cls, channel: ChannelSettings, info: ValidationInfo
    ) -> ChannelSettings:
        _check_stream_outlives_history(channel, info)
        return channel

    @field_validator("namespace_settings")
    @classmethod
    def _namespaces_are_distinct(
        cls, namespaces: tuple[NamespaceSettings, ...], info: ValidationInfo
    ) -> tuple[NamespaceSettings, ...]:
        seen: set[str] = set()
        for namespace in namespaces:
            if namespace.name in seen:
                raise ValueError(
                    f'holds "{namespace.name}" more than once; merge the two or rename one'
                )
            seen.add(namespace.name)
            _check_stream_outlives_history(namespace, info, f"{namespace.name}: ")
        return namespaces

    def namespaces(self) -> Namespaces:
        """The channel options by namespace, as `channel_options` says."""
        default, named = self.channel_options()
        return Namespaces(default, named)

    def channel_options(self) -> tuple[ChannelOptions, dict[str, ChannelOptions]]:
        """The options of channels without a namespace, and those of each namespace by its name.

        In development, channels without a namespace and the demo page's namespace are open unless
        they are configured.
        """
        default = self.channel
        named = {namespace.name: namespace.options() for namespace in self.namespace_settings}
        if self.development:
            named.setdefault(DEVELOPMENT_NAMESPACE, DEVELOPMENT_CHANNEL.options())
            if "channel" not in self.model_fields_set:
                default = DEVELOPMENT_CHANNEL
        return default.options(), named

    @property
    def has_token_key(self) -> bool:
        """Whether any key is configured that tokens can be verified with from now on."""
        return any(getattr(self, name) is not None for name in _TOKEN_KEYS)

    @property
    def makes_secrets(self) -> bool:
        """Whether missing secrets may be made and kept in `data_dir`.

        Not with a database outside: then this is one process of perhaps many, and all must agree.
        """
        return self.development or self.database_url is None

    def source(self, name: str) -> str:
        """Where the setting was read: "file …", "environment variable …", "default"."""
        return self._sources.get(name, DEFAULT_SOURCE)

    def sources(self) -> Mapping[str, str]:
        """Where each setting was read that isn't at its default."""
        return dict(self._sources)

    def with_sources(self, sources: Mapping[str, str]) -> Self:
        """The same settings, able to tell where they were read."""
        copy = self.model_copy()
        copy._sources = dict(sources)
        return copy

    def notes(self) -> list[str]:
        """What is allowed but probably not wanted, a sentence each."""
        return list(_notes(self))


_TOKEN_KEYS = (
    "token_hmac_secret",
    "token_rsa_public_key",
    "token_ecdsa_public_key",
    "token_eddsa_public_key",
    "token_jwks_file",
    "token_jwks_url",
)


def load(
    config: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read the settings: the file, the environment over it, `overrides` (by name) over both.

    Without `config`, the environment's GATEWAY_CONFIG names the file, if anything does. Nothing is
    written: secrets that are still missing are `gateway.secrets_file.complete`'s. Raises
    SettingsError with everything that is wrong.
    """
    gathered = gather(Settings, config, environ, overrides or {})
    try:
        settings = Settings.model_validate(gathered.values)
    except ValidationError as error:
        problems = [*gathered.problems, *explain(Settings, error, gathered)]
        raise SettingsError(problems) from None
    if gathered.problems:
        raise SettingsError(gathered.problems)
    return settings.with_sources(gathered.sources)


def _check_stream_outlives_history(
    channel: ChannelSettings, info: ValidationInfo, prefix: str = ""
) -> None:
    stream_ttl = info.data.get("stream_ttl")
    if stream_ttl is not None and channel.history_ttl > stream_ttl:
        raise ValueError(
            f"{prefix}keeps history ({render(channel.history_ttl)} s) for longer than stream_ttl"
            f" ({render(stream_ttl)} s); raise stream_ttl or lower history_ttl"
        )


def _notes(settings: Settings) -> Iterator[str]:
    if settings.token_jwks_url is not None and not _is_private_enough(settings.token_jwks_url):
        yield (
            "token_jwks_url is plain http: whoever stands in between can hand out keys of their"
            " own; use https"
        )
    if "*" in settings.allowed_origins and not settings.development:
        yield "allowed_origins holds *: pages of any site may connect with a token they have"
    if settings.api_key is None and not settings.makes_secrets and not settings.api_insecure:
        yield "api_key isn't set: the server API refuses every call"
    if settings.development and settings.host not in _LOOPBACK:
        yield f"development is on and {settings.host} isn't this machine alone: anyone gets a token"


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _is_private_enough(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK
