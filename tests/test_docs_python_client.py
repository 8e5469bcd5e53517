"""docs/python-client.md says what the client does."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from gateway import client, client_errors
from gateway.client_calls import CALLS_MAX
from gateway.client_errors import ClientError

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python-client.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def _first_cells(of: str) -> list[str]:
    """What a table's first cells name that has this heading."""
    _, _, rest = PAGE.partition(f"\n| {of} | |\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_are_python(block: str) -> None:
    compile(block, "python-client.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_states_are_listed() -> None:
    assert _first_cells("state") == [f"State.{state.name}" for state in client.State]


def test_errors_are_listed() -> None:
    errors = [
        name
        for name, error in vars(client_errors).items()
        if inspect.isclass(error) and issubclass(error, ClientError) and error is not ClientError
    ]

    assert _first_cells("error") == errors
    assert {*errors, "ClientError"} <= set(client.__all__)


def test_members_exist() -> None:
    members = [name for cell in _first_cells("member") for name in re.findall(r"gw\.(\w+)", cell)]

    assert members
    assert all(isinstance(getattr(client.Gateway, name), property) for name in members)


def test_figures_are_right() -> None:
    limits = client.QueueLimits()

    assert f"At most {CALLS_MAX} commands" in PAGE
    assert f"{limits.publications:,} publications or {limits.bytes // 2**20} MiB" in PAGE


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    tree = client_errors.__doc__ or ""
    drawn = re.findall(r"^( +(?:│ +)?[├└]── )(\w+)", tree, re.MULTILINE)

    assert len(drawn) == len([name for name in client.__all__ if hasattr(client_errors, name)]) - 1
    for prefix, name in drawn:
        error = getattr(client_errors, name)
        depth = error.__mro__.index(ClientError)
        assert len(prefix) == 4 + 5 * depth, name
