"""What a single setting may hold, and how its text is read.

Every parser raises ValueError with a message that says what is wrong and what to do instead. Such
a message may repeat the value, so secrets are never passed to a parser that does.
"""

import ipaddress
import json
import math
import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr

HMAC_SECRET_BYTES_MIN = 32
"""RFC 7518, 3.2: a key of at least the hash's size; 32 bytes for HS256."""

API_KEY_LENGTH_MIN = 16
"""Short enough to type, too long to guess over a network."""

MODEL_CONFIG = ConfigDict(
    extra="forbid",
    frozen=True,
    hide_input_in_errors=True,
    use_attribute_docstrings=True,
    validate_default=True,
)
"""How every model of settings behaves; validating defaults lets a check compare two fields even
when only one of them was set."""

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.ASCII)
_SECONDS_HELP = 'write a number of seconds, or a text such as "300s", "10m", "12h" or "7d"'
_MOMENT_HELP = "write a moment with its offset, such as 2030-01-31T12:00:00Z, or seconds since 1970"
_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg", "postgres+asyncpg")
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_seconds(value: object) -> float:
    """Read a duration: a number of seconds, or text with units ("90", "300s", "1h30m")."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"isn't a duration; {_SECONDS_HELP}")
    if isinstance(value, str):
        return _parse_seconds_text(value.strip())
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError(f"must be finite; {_SECONDS_HELP}")
    return seconds


def _parse_seconds_text(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        position, seconds = 0, 0.0
        while position < len(text):
            part = _PART.match(text, position)
            if part is None:
                break
            seconds += float(part[1]) * _UNITS[part[2]]
            position = part.end()
        if not text or position < len(text):
            raise ValueError(f"{text!r} isn't a duration; {_SECONDS_HELP}") from None
    if not math.isfinite(seconds):
        raise ValueError(f"must be finite; {_SECONDS_HELP}")
    return seconds


def parse_moment(value: object) -> float:
    """Read a moment as unix seconds: RFC 3339 text, a TOML date-time, or the number itself."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            try:
                value = datetime.fromisoformat(text)
            except ValueError:
                raise ValueError(f"{text!r} isn't a moment; {_MOMENT_HELP}") from None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"has no offset from UTC; {_MOMENT_HELP}")
        return value.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"isn't a moment; {_MOMENT_HELP}")
    try:
        moment = float(value)
    except OverflowError:
        moment = math.inf
    if not math.isfinite(moment):
        raise ValueError(f"must be finite; {_MOMENT_HELP}")
    return moment


def split_list(value: object) -> object:
    """Read a list written as one text: comma-separated, or a JSON array."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return parse_json(text)
    return [part for part in (part.strip() for part in text.split(",")) if part]


def parse_json(value: object) -> object:
    """Read a table or list that came as JSON text, as environment variables must carry it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("isn't valid JSON; write it as a JSON value") from None


def parse_origin(value: str) -> str:
    """Check one allowed origin and give it the form in which browsers send it."""
    if value == "*":
        return value
    if "*" in value:
        raise ValueError(
            f'{value!r} holds a wildcard; list each origin, or only "*" to allow every one'
        )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or not parts.scheme or not parts.hostname:
        raise ValueError(
            f"{value!r} isn't an origin; write scheme://host or scheme://host:port,"
            ' such as "https://chat.example.com"'
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    origin = f"{parts.scheme}://{host}"
    if port is not None and port != _DEFAULT_PORTS.get(parts.scheme):
        origin += f":{port}"
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{value!r} is more than an origin; write {origin!r}")
    return origin


def parse_network(value: object) -> IPNetwork:
    """Read one network in CIDR notation; a single address is a network of one."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError('isn\'t a network; write it as text, such as "10.0.0.0/8"')
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            f'{value!r} isn\'t a network; write an address or a CIDR, such as "10.0.0.0/8"'
        ) from None
    raise ValueError(f"{value!r} has bits set behind its prefix; write {str(meant)!r}")


def parse_regex(value: str) -> str:
    """Check that the text compiles as a regular expression of Python's `re`."""
    try:
        with warnings.catch_warnings():
            # Of syntax that may get another meaning one day: better refused than misread then.
            warnings.simplefilter("error", FutureWarning)
            re.compile(value)
    except (re.error, RecursionError, OverflowError, FutureWarning) as error:
        raise ValueError(f"isn't a regular expression: {error}; correct it") from None
    return value


def parse_http_url(value: str) -> str:
    """Check that the text is an http(s) URL with a host."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("isn't a URL; write it as https://host/path")
    return value


def _check_hmac_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < HMAC_SECRET_BYTES_MIN:
        raise ValueError(
            f"is shorter than {HMAC_SECRET_BYTES_MIN} bytes, so it could be guessed from a token;"
            " make one with: openssl rand -hex 32"
        )
    return value


def _check_api_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if len(key) < API_KEY_LENGTH_MIN:
        raise ValueError(
            f"is shorter than {API_KEY_LENGTH_MIN} characters; make one with: openssl rand -hex 32"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            "holds characters that an HTTP header can't carry; use letters, digits and -_.~"
        )
    return value


def _check_url_scheme(value: SecretStr, schemes: tuple[str, ...]) -> SecretStr:
    scheme, separator, _ = value.get_secret_value().partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"must begin with {schemes[0]}://; write it as a URL")
    return value


def _check_postgres_url(value: SecretStr) -> SecretStr:
    return _check_url_scheme(value, _POSTGRES_SCHEMES)


def _check_redis_url(value: SecretStr) -> SecretStr:
    return _check_url_scheme(value, _REDIS_SCHEMES)


def _refuse_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number; correct it")
    return value


def _expand_home(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str | Path) else value


def _join_pem_lines(value: object) -> object:
    """Take a PEM whose line ends were written as `\\n`, as one-line variables force people to."""
    return value.replace("\\n", "\n").strip() if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_refuse_boolean)]
Number = Annotated[float, BeforeValidator(_refuse_boolean), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=0)]
CountAboveZero = Annotated[Whole, Field(gt=0)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Duration = Annotated[Seconds, Field(gt=0)]
DurationOrZero = Annotated[Seconds, Field(ge=0)]
Moment = Annotated[float, BeforeValidator(parse_moment)]
Origin = Annotated[str, AfterValidator(parse_origin)]
Network = Annotated[IPNetwork, BeforeValidator(parse_network)]
Regex = Annotated[str, AfterValidator(parse_regex)]
HttpUrl = Annotated[str, AfterValidator(parse_http_url)]
HmacSecret = Annotated[SecretStr, AfterValidator(_check_hmac_secret)]
ApiKey = Annotated[SecretStr, AfterValidator(_check_api_key)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_check_postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
FilePath = Annotated[Path, BeforeValidator(_expand_home)]
PemText = Annotated[str, BeforeValidator(_join_pem_lines)]
AsList = BeforeValidator(split_list)
AsJson = BeforeValidator(parse_json)


def render(value: Any) -> str:
    """Write a setting's value as TOML would, for tables, documents and messages.

    Secrets come out masked.
    """
    if value is None:
        return "not set"
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render(item) for item in value) + "]"
    if isinstance(value, str | Path | ipaddress.IPv4Network | ipaddress.IPv6Network):
        return json.dumps(str(value), ensure_ascii=False)
    return str(value)
