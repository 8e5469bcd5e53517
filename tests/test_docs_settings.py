"""docs/settings.md has a row for every setting, and the row says what the code does."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from gateway.settings import ChannelSettings, NamespaceSettings, Settings, load
from gateway.settings_sources import environ_names, setting_names
from gateway.settings_values import parse_seconds, render

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| `")]

TABLES = ("channel", "namespaces")
SETTINGS = [name for name in setting_names(Settings) if name not in TABLES]
OPTIONS = list(ChannelSettings.model_fields)


def _unit(name: str, info: FieldInfo) -> str:
    checks = [check for check in info.metadata if isinstance(check, BeforeValidator)]
    if any(check.func is parse_seconds for check in checks):
        return "seconds"
    return "bytes" if name.endswith("_bytes") else ""


def _meaning(info: FieldInfo) -> str:
    return " ".join((info.description or "").split()).replace("|", "\\|")


def _setting_row(name: str) -> str:
    info = Settings.model_fields[name]
    variables = "<br>".join(f"`{variable}`" for variable in environ_names(name))
    cells = [f"`{name}`", variables, _unit(name, info), f"`{render(info.default)}`", _meaning(info)]
    return f"| {' | '.join(cells)} |"


def _option_row(name: str) -> str:
    info = ChannelSettings.model_fields[name]
    return f"| `{name}` | {_unit(name, info)} | `{render(info.default)}` | {_meaning(info)} |"


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_is_documented_as_it_is(name: str) -> None:
    assert _setting_row(name) in ROWS


@pytest.mark.parametrize("name", OPTIONS)
def test_channel_option_is_documented_as_it_is(name: str) -> None:
    assert _option_row(name) in ROWS


def test_nothing_is_documented_that_does_not_exist() -> None:
    documented = [row.split("`")[1] for row in ROWS]

    assert documented == SETTINGS + OPTIONS


def test_every_setting_says_what_it_is_for() -> None:
    for model in (Settings, ChannelSettings, NamespaceSettings):
        undescribed = [name for name, info in model.model_fields.items() if not info.description]

        assert undescribed == []


def test_the_example_file_is_accepted(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 1
    file = tmp_path / "capegate.toml"
    file.write_text(examples[0], encoding="utf-8")

    settings = load(file, {})

    options = settings.namespaces().options("chat:lobby")
    assert options is not None
    assert options.keeps_history


def test_the_example_variables_are_accepted() -> None:
    pairs = re.findall(r"`(GATEWAY_[A-Z_]+)='?([^`']+)'?`", TEXT)
    environ = {
        name: value for name, value in pairs if "…" not in value and name != "GATEWAY_CONFIG"
    }

    settings = load(None, environ)

    assert json.dumps(settings.allowed_origins) == '["https://a.example", "https://b.example"]'
    assert settings.namespaces().options("chat:lobby") is not None
