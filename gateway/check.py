"""What `capegate check` tells: the settings in force, where each was read, and what is wrong."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from gateway.protocol.channels import ChannelOptions
from gateway.secrets_file import complete, missing_secrets, secret_path
from gateway.settings import Problem, Settings, SettingsError, load
from gateway.settings_sources import gather
from gateway.settings_values import render

Row = tuple[str, str, str]

VALUE_WIDTH_MAX = 56
"""Longer values, such as PEM keys, are cut: the line still fits beside its source."""


def report(config: Path | None, environ: Mapping[str, str]) -> tuple[list[str], list[Problem]]:
    """The lines to print and the problems found. Writes nothing, but asks the database.

    With a problem in the settings there is no table, since none of them would come into force.
    """
    try:
        settings = complete(load(config, environ), make=False)
    except SettingsError as error:
        # The database's own problem, if it has one, belongs to the same answer.
        gathered = gather(Settings, config, environ, {})
        url, source = gathered.values.get("database_url"), gathered.sources.get("database_url", "")
        found = list(error.problems)
        if isinstance(url, str) and all(problem.name != "database_url" for problem in found):
            _, problem = asyncio.run(_ask_database(url, source))
            found += [problem] if problem is not None else []
        return [], found
    lines = _table([("setting", "value", "from"), *_rows(settings)])
    facts, problems = asyncio.run(_ask_others(settings))
    lines += ["", *facts, *(f"note: {note}" for note in settings.notes())]
    if not problems:
        lines.append("Everything is in order.")
    return lines, problems


def _rows(settings: Settings) -> Iterator[Row]:
    missing = missing_secrets(settings)
    for name in Settings.model_fields:
        if name in ("channel", "namespace_settings"):
            continue
        value, source = render(getattr(settings, name)), settings.source(name)
        if name in missing:
            value, source = "not made yet", f"first start, into {secret_path(settings, name)}"
        elif name == "database_url" and settings.database_url is None:
            value = f"embedded, in {settings.data_dir}"
        yield name, value, source
    default, named = settings.channel_options()
    yield from _option_rows("channel", default, settings.source("channel"))
    for name, options in named.items():
        yield from _option_rows(f"namespaces.{name}", options, settings.source("namespaces"))


def _option_rows(prefix: str, options: ChannelOptions, source: str) -> Iterator[Row]:
    """The options that aren't at their defaults, for there are twenty of them."""
    changed = False
    for option in fields(options):
        value = getattr(options, option.name)
        if value != option.default:
            changed = True
            yield f"{prefix}.{option.name}", render(value), source
    if not changed:
        yield prefix, "every option off", source


def _table(rows: list[Row]) -> list[str]:
    cut = [(name, _cut(value), source) for name, value, source in rows]
    widths = [max(len(row[column]) for row in cut) for column in range(2)]
    return [
        f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}".rstrip()
        for name, value, source in cut
    ]


def _cut(value: str) -> str:
    return value if len(value) <= VALUE_WIDTH_MAX else value[: VALUE_WIDTH_MAX - 1] + "…"


async def _ask_others(settings: Settings) -> tuple[list[str], list[Problem]]:
    """What the services that the settings name say; only those that are set."""
    answers = []
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        answers.append(await _ask_database(url, settings.source("database_url")))
    if settings.token_jwks_url is not None:
        url = settings.token_jwks_url
        answers.append(await _ask_key_set(url, settings.source("token_jwks_url")))
    return (
        [fact for fact, _ in answers if fact],
        [problem for _, problem in answers if problem is not None],
    )


async def _ask_database(url: str, source: str) -> tuple[str, Problem | None]:
    """What there is to say about the database, and what is wrong with it."""
    # Late, because a database driver takes a while to import.
    import asyncpg  # noqa: PLC0415

    from store.migrate import current, revisions  # noqa: PLC0415
    from store.pool import DatabaseError  # noqa: PLC0415

    try:
        revision = await current(url)
    except (DatabaseError, asyncpg.PostgresError) as error:
        return "", Problem("database_url", source, str(error))
    newest = revisions()[-1]
    if revision is not None and revision > newest:
        problem = f"is at revision {revision}, newer than this gateway ({newest}); update it"
        return "", Problem("database_url", source, problem)
    has = "no schema yet" if revision is None else f"revision {revision}"
    todo = "" if revision == newest else f"; the next start brings it to {newest}"
    return f"The database answers and has {has}{todo}.", None


async def _ask_key_set(url: str, source: str) -> tuple[str, Problem | None]:
    from gateway.key_fetch import fetch  # noqa: PLC0415
    from gateway.keys import parse_key_set  # noqa: PLC0415

    try:
        keys = parse_key_set(await fetch(url))
    except (OSError, ValueError) as error:
        return "", Problem("token_jwks_url", source, f"gives no key set: {error}")
    return f"The key set behind token_jwks_url has {len(keys)} usable key(s).", None
