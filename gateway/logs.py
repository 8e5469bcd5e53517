"""Log lines: readable on a terminal, JSON elsewhere. No payloads, no tokens, no secrets."""

import logging
import sys

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from gateway.settings import Settings


def configure(settings: Settings) -> None:
    """Send the standard library's log records to stderr in the configured form."""
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor
    if as_json:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # One line per request is the proxy's business; here it would drown what matters.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_not_the_clients_fault)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _not_the_clients_fault(record: logging.LogRecord) -> bool:
    """Drop what aiohttp says of requests that aren't HTTP, or whose bodies aren't what they say.

    Their senders are answered with 400. Here they could fill the disk, and their bytes, which the
    message quotes, may hold cookies and tokens.
    """
    return record.exc_info is None or not isinstance(
        record.exc_info[1], HttpProcessingError | RequestPayloadError
    )
