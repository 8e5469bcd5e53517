"""The command line: `capegate serve`, `migrate`, `check`, `token`, `version`.

What goes wrong for a reason that a person can mend is a line on stderr and exit code 1; a traceback
is a bug. Modules are imported by the command that needs them, so that `token` doesn't wait for a
web server and a database driver.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from gateway.settings import Problem, Settings

_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings as TOML; environment variables go over it. GATEWAY_CONFIG names it too.",
)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("capegate")
    except PackageNotFoundError:
        return "unknown (capegate isn't installed)"


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"capegate {_version()}")
        context.exit()


def _read_seconds(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> float | None:
    from gateway.settings_values import parse_seconds

    try:
        return None if value is None else parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _read_json(_context: click.Context, _option: click.Parameter, value: str | None) -> object:
    import orjson

    try:
        return None if value is None else orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"isn't JSON: {error}") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def main() -> None:
    """A realtime gateway: chat over WebSocket with durable history in PostgreSQL."""


@main.command()
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to listen on; 0 for any.")
@_CONFIG
@click.option("--dev", is_flag=True, help="Development: tokens and the demo page for anyone here.")
def serve(host: str | None, port: int | None, config: Path | None, dev: bool) -> None:
    """Start the gateway and run it until it is told to stop."""
    overrides: dict[str, object] = {}
    if host is not None:
        overrides["host"] = host
    if port is not None:
        overrides["port"] = port
    if dev:
        overrides["development"] = True
    settings = _complete(_load(config, overrides))

    from gateway.app import StartError
    from gateway.app import serve as run

    try:
        sys.exit(run(settings))
    except StartError as error:
        _fail(str(error))


@main.command()
@click.option(
    "--to",
    "revision",
    default="head",
    metavar="REV",
    help='The revision to go to, up or down: a number, "head" (newest) or "base" (empty).',
)
@_CONFIG
def migrate(revision: str, config: Path | None) -> None:
    """Bring the database's schema up to date, or to a revision."""
    # Nobody connects to this process, so it does without the token key that a gateway must have.
    settings = _load(config, {"allow_anonymous": True})

    import asyncio

    from store.embedded import EmbeddedServer, EmbeddedServerError
    from store.migrate import MigrationError
    from store.pool import DatabaseError

    try:
        if settings.database_url is not None:
            asyncio.run(_migrate(settings.database_url.get_secret_value(), revision))
        else:
            server = EmbeddedServer(settings.data_dir)
            try:
                asyncio.run(_migrate(server.start(), revision))
            finally:
                server.stop()
    except (DatabaseError, MigrationError, EmbeddedServerError) as error:
        _fail(str(error))


async def _migrate(url: str, revision: str) -> None:
    """Go up or down to the revision, and print what was done."""
    from store.migrate import current, downgrade, revisions, upgrade

    before = await current(url)
    is_below = revision in revisions() and before is not None and revision < before
    if is_below or revision == "base" or revision.startswith("-"):
        for step in await downgrade(url, revision):
            click.echo(f"undid {step}")
    else:
        for step in await upgrade(url, revision):
            click.echo(f"applied {step}")
    after = await current(url)
    click.echo(f"The database is at {f'revision {after}' if after else 'base, empty'}.")


@main.command()
@_CONFIG
def check(config: Path | None) -> None:
    """Print the settings in force and everything that is wrong with them.

    Looks whether the database answers when DATABASE_URL is set, and the key set when there is one.
    Exits with 1 when anything is wrong. Changes nothing.
    """
    from gateway.check import report

    lines, problems = report(config, os.environ)
    for line in lines:
        click.echo(line)
    _print_problems(problems)
    if problems:
        sys.exit(1)


@main.command()
@click.option("--user", required=True, help="The user's id; empty for an anonymous token.")
@click.option("--channel", help="Makes a subscription token for this channel instead.")
@click.option("--ttl", callback=_read_seconds, help='How long it is good for, such as "1h"; a day.')
@click.option("--info", callback=_read_json, help="What others see of the user, as JSON.")
@_CONFIG
def token(
    user: str, channel: str | None, ttl: float | None, info: object, config: Path | None
) -> None:
    """Print a token that this gateway accepts, and nothing else."""
    settings = _complete(_load(config))

    from gateway.auth import MINT_TTL, MintError, mint

    lifetime = MINT_TTL if ttl is None else ttl
    try:
        click.echo(mint(settings, user, channel=channel, ttl=lifetime, info=info))
    except MintError as error:
        _fail(str(error))


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"capegate {_version()}")


def _load(config: Path | None, overrides: dict[str, object] | None = None) -> "Settings":
    from gateway.settings import SettingsError, load

    try:
        return load(config, os.environ, overrides)
    except SettingsError as error:
        _print_problems(error.problems)
        sys.exit(1)


def _complete(settings: "Settings") -> "Settings":
    """Fill in the secrets that are kept in the data folder."""
    from gateway.secrets_file import complete, missing_secrets, secret_path
    from gateway.settings import SettingsError

    try:
        found = complete(settings, make=False)
        completed = complete(found)
    except SettingsError as error:
        _print_problems(error.problems)
        sys.exit(1)
    for name in missing_secrets(found):
        path = secret_path(settings, name).resolve()
        click.echo(f"capegate: {name} isn't set, so one was made: {path}", err=True)
    return completed


def _print_problems(problems: "Iterable[Problem]") -> None:
    for problem in problems:
        click.echo(f"capegate: {problem}", err=True)


def _fail(message: str) -> NoReturn:
    """End with one line. What is told here is never a bug, so there is no traceback."""
    click.echo(f"capegate: {message}", err=True)
    sys.exit(1)
