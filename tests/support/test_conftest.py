"""The guards in tests/conftest.py fail the tests that they should."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blockbuster import BlockingError

import gateway

_ROOT = Path(__file__).parent.parent.parent
_SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
addopts = -p tests.conftest -p no:cacheprovider --import-mode=importlib
"""


def _run(folder: Path, **files: str) -> tuple[int, str]:
    """Runs a suite of its own under our conftest: `unit="…"` is its tests/unit/test_it.py."""
    (folder / "pytest.ini").write_text(_SETTINGS)
    for name, text in files.items():
        (folder / "tests" / name).mkdir(parents=True)
        (folder / "tests" / name / "test_it.py").write_text(text)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", folder / "pytest.ini", folder / "tests"],
        check=False,
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )
    return result.returncode, result.stdout


def test_a_task_that_is_left_over_fails_its_test(tmp_path: Path) -> None:
    code, said = _run(
        tmp_path,
        integration="""
import asyncio
async def test_it():
    asyncio.get_running_loop().create_task(asyncio.Event().wait())
""",
    )

    assert code == 1
    assert "the test left tasks running" in said


def test_an_error_that_only_the_loop_saw_fails_its_test(tmp_path: Path) -> None:
    code, said = _run(
        tmp_path,
        integration="""
import asyncio
async def test_in_a_callback():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
async def fail():
    raise ValueError("unheard")
async def test_in_a_forgotten_task():
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
""",
    )

    assert code == 1
    assert "ZeroDivisionError" in said
    assert "unheard" in said
    assert "2 passed, 2 errors" in said


def test_nothing_slower_starts_after_a_failure_in_a_unit_test(tmp_path: Path) -> None:
    code, said = _run(
        tmp_path,
        chaos="def test_it(): pass",
        protocol="def test_it(): pass",
        unit="def test_it(): assert False",
    )

    assert code == 1
    assert "nothing slower was started" in said
    assert "1 failed, 1 passed" in said


def test_a_failure_among_the_slow_ones_ends_nothing(tmp_path: Path) -> None:
    code, said = _run(
        tmp_path,
        chaos="def test_it(): pass",
        integration="def test_it(): assert False",
        unit="def test_it(): pass",
    )

    assert code == 1
    assert "1 failed, 2 passed" in said


async def test_a_blocking_call_by_our_code_is_an_error() -> None:
    # What a module of the gateway would do: it is judged by the file that its code is from.
    code = compile("time.sleep(0)", str(Path(gateway.__path__[0]) / "sleeper.py"), "exec")

    with pytest.raises(BlockingError):
        exec(code, {"time": time})


async def test_everything_runs_on_uvloop() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)


async def test_an_expected_error_can_be_taken_out(loop_errors: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)

    assert isinstance(loop_errors.pop()["exception"], ZeroDivisionError)
