"""Secrets that were not configured: made once, then kept in `data_dir`.

The server and `capegate token` are separate processes and must agree on them. Each secret is a
file of its own, readable by its owner only. It appears complete or not at all, and when two
processes make it at the same moment both use the one that was first.
"""

import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from gateway.settings import Problem, Settings, SettingsError
from gateway.settings_values import HMAC_SECRET_BYTES_MIN

FOLDER = "secrets"

SECRET_BYTES = 32
"""256 bits, written as 64 hexadecimal digits."""


def complete(settings: Settings, *, make: bool = True) -> Settings:
    """The settings with the secrets that weren't configured, making them where they are missing.

    With `make=False` only those are filled in that exist already, and nothing is written. Settings
    that are complete, or for which nothing may be made (`Settings.makes_secrets`), come back as
    they are. Raises SettingsError when a secret can be neither read nor kept.
    """
    missing = missing_secrets(settings)
    found: dict[str, SecretStr] = {}
    sources: dict[str, str] = {}
    for name in missing:
        path = secret_path(settings, name)
        try:
            secret = _read_or_make(path) if make else _read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unusable(name, path, f"can't be kept: {error.strerror}") from error
        if len(secret) < HMAC_SECRET_BYTES_MIN:
            raise _unusable(name, path, "is too short")
        found[name] = SecretStr(secret)
        sources[name] = f"file {path}"
    if not found:
        return settings
    return settings.model_copy(update=found).with_sources({**settings.sources(), **sources})


def missing_secrets(settings: Settings) -> tuple[str, ...]:
    """The names of the secrets that `complete` would fill in."""
    if not settings.makes_secrets:
        return ()
    missing = []
    if not settings.has_token_key:
        missing.append("token_hmac_secret")
    if settings.api_key is None and not settings.api_insecure:
        missing.append("api_key")
    return tuple(missing)


def secret_path(settings: Settings, name: str) -> Path:
    """Where the secret is kept."""
    return settings.data_dir / FOLDER / name


def _read_or_make(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # Unlike a rename, a link refuses a name that is taken: the first one stays.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
    finally:
        draft.unlink()
    _sync_folder(path.parent)
    return _read(path)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut, where the platform lets a folder be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(name: str, path: Path, what: str) -> SettingsError:
    advice = f"correct that, or set {name}"
    return SettingsError([Problem(name, f"file {path}", f"{what}; {advice}")])
