"""Each module can be imported by itself, first, and without a warning.

A cycle or a missing import often hides behind another module that was imported before.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "handlers", "store", "metrics")


def _modules() -> list[str]:
    names = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            # Alembic runs these itself: they are scripts, and their folders no packages.
            if "migrations" in path.parts:
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    # Importing this one starts the command line.
    names.remove("gateway.__main__")
    return names


def _import_alone(module: str) -> str:
    """What a fresh interpreter says when it imports nothing but this."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {module}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return result.stderr if result.returncode else ""


@pytest.fixture(scope="module")
def complaints() -> dict[str, str]:
    """What each module's import said, "" if nothing. At once, since each is a process's start."""
    modules = _modules()
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        return dict(zip(modules, executor.map(_import_alone, modules), strict=True))


@pytest.mark.parametrize("module", _modules())
def test_module_imports_alone(module: str, complaints: dict[str, str]) -> None:
    assert not complaints[module]


def test_main_starts_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "gateway", "--help"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert result.returncode == 0, result.stderr
    assert "Usage: capegate" in result.stdout
