"""Where settings come from: a TOML file, environment variables, the command line; and every way in
which what stands there can be wrong, told at once.

Nothing here knows which settings exist: the model is an argument.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gateway.settings_values import render

ENVIRON_PREFIX = "GATEWAY_"

CONFIG_VARIABLE = "GATEWAY_CONFIG"
"""Names the TOML file when the command line doesn't."""

PLATFORM_VARIABLES = {"database_url": "DATABASE_URL", "redis_url": "REDIS_URL", "port": "PORT"}
"""Variables that hosting platforms set; a `GATEWAY_` variable of the same setting goes first."""

DEFAULT_SOURCE = "default"

# Kubernetes describes each Service of a namespace to each container in variables made from the
# Service's name. One that is called "gateway" or "gateway-…" would look like settings of ours.
_SERVICE_LINK_NAME = re.compile(
    r"GATEWAY_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://[^/]+:\d+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: with which setting, where it was read, what to do about it."""

    name: str
    source: str
    message: str

    def __str__(self) -> str:
        source = "not set" if self.source == DEFAULT_SOURCE else self.source
        return f"{self.name} ({source}): {self.message}"


class SettingsError(Exception):
    """What was configured can't be used. `problems` holds everything found, never a secret."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Gathered:
    """Raw values by setting, and the place each one was read from."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    file_is_readable: bool = True

    def put(self, name: str, value: object, source: str) -> None:
        self.values[name] = value
        self.sources[name] = source


def gather(
    model: type[BaseModel],
    config: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
) -> Gathered:
    """Collect the values of the file, then the environment's over it, then the overrides'.

    An environment variable that is set but empty counts as not set.
    """
    gathered = Gathered()
    names = setting_names(model)
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    if config is not None:
        _read_file(gathered, config)
    for name in names:
        for variable in environ_names(name):
            value = environ.get(variable, "")
            if value and not _is_service_link(variable, value):
                gathered.put(name, value, f"environment variable {variable}")
                break
    known = {variable for name in names for variable in environ_names(name)} | {CONFIG_VARIABLE}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRON_PREFIX) or variable in known:
            continue
        if not _is_service_link(variable, environ[variable]):
            advice = _did_you_mean(variable, sorted(known)) or "remove it"
            gathered.problems.append(
                Problem(variable, "environment", f"no setting has this name; {advice}")
            )
    for name, override in overrides.items():
        gathered.put(name, override, f"command line --{name.replace('_', '-')}")
    return gathered


def setting_names(model: type[BaseModel]) -> list[str]:
    """The names under which the model's fields are configured, in their order."""
    return [info.alias or name for name, info in model.model_fields.items()]


def environ_names(name: str) -> tuple[str, ...]:
    """The environment variables that set the setting, the one that goes first first."""
    own = ENVIRON_PREFIX + name.upper()
    platform = PLATFORM_VARIABLES.get(name)
    return (own,) if platform is None else (own, platform)


def explain(
    model: type[BaseModel], error: ValidationError, gathered: Gathered
) -> Iterable[Problem]:
    """Turn what pydantic found into problems a person can act on, without any value it saw."""
    for detail in error.errors(include_url=False, include_input=False):
        location = detail["loc"]
        name = str(location[0]) if location else "settings"
        source = gathered.sources.get(name, DEFAULT_SOURCE)
        if source == DEFAULT_SOURCE and not gathered.file_is_readable:
            # It may well stand in the file that couldn't be read.
            continue
        message = _message(model, location, detail["type"], detail["msg"], detail.get("ctx", {}))
        yield Problem(_dotted(location, gathered.values), source, message)


def _read_file(gathered: Gathered, config: Path) -> None:
    try:
        with config.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        message = "doesn't exist; correct the path or leave it out"
    except OSError as error:
        message = f"can't be read: {error.strerror}; correct the path or its permissions"
    except UnicodeDecodeError:
        message = "isn't UTF-8; save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        message = f"isn't valid TOML: {error}; correct it"
    else:
        for name, value in values.items():
            gathered.put(name, value, f"file {config}")
        return
    gathered.file_is_readable = False
    gathered.problems.append(Problem("config", f"file {config}", message))


def _is_service_link(variable: str, value: str) -> bool:
    if _SERVICE_LINK_NAME.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_LINK_VALUE.fullmatch(value) is not None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _dotted(location: tuple[int | str, ...], values: Mapping[str, Any]) -> str:
    """`("namespaces", 0, "presence")` becomes `namespaces.chat.presence`."""
    if not location:
        return "settings"
    text = _printable(str(location[0]))
    place: Any = values.get(str(location[0]))
    for step in location[1:]:
        if isinstance(step, str):
            text += f".{_printable(step)}"
            continue
        try:
            place = place[step]
        except (TypeError, KeyError, IndexError):
            place = None
        name = place.get("name") if isinstance(place, dict) else None
        text += f".{_printable(name)}" if isinstance(name, str) and name else f"[{step}]"
    return text


def _printable(name: str) -> str:
    """A key as it stands, but a problem stays one line."""
    return name if name.isprintable() else ascii(name)


def _message(
    model: type[BaseModel],
    location: tuple[int | str, ...],
    kind: str,
    text: str,
    context: Mapping[str, Any],
) -> str:
    if kind == "extra_forbidden":
        return _unknown(model, location)
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "is missing; set it"
    limits = {
        "greater_than": ("must be above {gt}", "gt"),
        "greater_than_equal": ("must be at least {ge}", "ge"),
        "less_than": ("must be below {lt}", "lt"),
        "less_than_equal": ("must be at most {le}", "le"),
        "string_too_short": ("must have at least {min_length} character(s)", "min_length"),
        "string_pattern_mismatch": ("must match {pattern}", "pattern"),
        "literal_error": ("must be {expected}", "expected"),
    }
    if kind in limits:
        template, key = limits[kind]
        value = context[key]
        what = template.format(**{key: render(value) if isinstance(value, float) else value})
    elif kind.startswith("int_"):
        what = "must be a whole number"
    elif kind.startswith("float_"):
        what = "must be a number"
    elif kind.startswith("bool_"):
        what = "must be true or false"
    elif kind.startswith(("string_", "secret_")):
        what = "must be text"
    elif kind.startswith(("tuple_", "list_")):
        what = "must be a list"
    elif kind.startswith(("model_", "dict_")):
        what = "must be a table"
    else:
        what = text[:1].lower() + text[1:]
    return f"{what}; {_advice(_field(model, location))}"


def _advice(info: FieldInfo | None) -> str:
    if info is None or info.is_required():
        return "correct it"
    if info.default is None:
        return "correct it or leave it out"
    if info.default_factory is not None or isinstance(info.default, BaseModel):
        return "correct it"
    return f"correct it or leave it out for the default, {render(info.default)}"


def _unknown(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Say where an unknown key was meant to stand, if that can be guessed."""
    name = str(location[-1])
    owner = _owner(model, location) or model
    if owner is not model and name in setting_names(model):
        return (
            "is a setting, not a channel option; move it above the file's first [table],"
            " for what stands below belongs to that table"
        )
    if owner is model and name in _options(model):
        return "is a channel option; move it into [channel] or one of the [[namespaces]]"
    known = setting_names(owner)
    advice = _did_you_mean(name, known)
    if not advice and owner is model:
        advice = _did_you_mean(name.lower(), known)
    return f"no setting has this name; {advice or 'remove it'}"


def _options(model: type[BaseModel]) -> list[str]:
    """The names inside the tables directly below the model."""
    names: list[str] = []
    for info in model.model_fields.values():
        nested = _nested_model(info)
        if nested is not None:
            names += setting_names(nested)
    return names


def _owner(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose field the last step of the location names."""
    owner: type[BaseModel] | None = model
    for step in location[:-1]:
        if isinstance(step, str) and owner is not None:
            info = _find(owner, step)
            owner = None if info is None else _nested_model(info)
    return owner


def _field(model: type[BaseModel], location: tuple[int | str, ...]) -> FieldInfo | None:
    names = [step for step in location if isinstance(step, str)]
    if not names:
        return None
    owner = _owner(model, tuple(names))
    return None if owner is None else _find(owner, names[-1])


def _find(model: type[BaseModel], name: str) -> FieldInfo | None:
    for field_name, info in model.model_fields.items():
        if name == (info.alias or field_name):
            return info
    return None


def _nested_model(info: FieldInfo) -> type[BaseModel] | None:
    """The model that the field, or each item of the field's list, holds."""
    annotation = info.annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
