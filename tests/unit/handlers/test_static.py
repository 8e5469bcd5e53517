"""The page's modules that know no DOM, tested where they run without one: on Node."""

import subprocess
from pathlib import Path

import pytest

from tests.support import tools

TESTS = Path(__file__).parent / "static"


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.test.js")))
def test_the_modules_do_what_their_tests_say(name: str) -> None:
    done = subprocess.run(
        [tools.node(), "--test", "--test-reporter=spec", TESTS / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests 0" not in done.stdout
