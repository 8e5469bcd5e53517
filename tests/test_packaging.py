"""The wheel holds what it should, and nothing else; installed, it works away from the source tree.

What is missing from setup.cfg's package_data is missing only here: in the source tree everything
works.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from handlers.pages import CLIENT_FILES

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "handlers", "store", "metrics")

# The chat page's part of the JavaScript client, in the wheel and in the source tree.
CLIENT = "handlers/client"
CLIENT_SOURCE = "clients/js/src"

# What a checkout holds that a clone doesn't. `build` above all: setuptools would take stale modules
# from it.
_NOT_THE_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "data", "bench-results", "node_modules", "__pycache__", "*.egg-info"
)

# Runs inside the installed environment, from an empty folder: imports everything there is and says
# where it came from.
_IMPORT_EVERYTHING = """
import importlib, importlib.metadata, json, pkgutil
origins, names = {}, []
for package in ("gateway", "handlers", "store", "metrics"):
    module = importlib.import_module(package)
    origins[package] = module.__file__
    names += [m.name for m in pkgutil.walk_packages(module.__path__, package + ".")]
for name in names:
    if name != "gateway.__main__":
        importlib.import_module(name)
owners = importlib.metadata.packages_distributions()
print(json.dumps({
    "origins": origins,
    "modules": names,
    "owners": {
        name: sorted(set(owners.get(name, [])))
        for name in ("gateway", "handlers", "store", "metrics", "scripts", "tests")
    },
}))
"""

# Reads all of the page, as the installed server does at its start, and says from where.
_LOAD_PAGE = """
from aiohttp import web
from handlers import pages
pages.setup_pages(web.Application())
print(pages.client_folder())
"""

_LIST_REVISIONS = """
import importlib.resources
from alembic.script import ScriptDirectory
folder = importlib.resources.files("store") / "migrations"
print(*(r.revision for r in ScriptDirectory(str(folder)).walk_revisions()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source, with this environment's setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=_NOT_THE_SOURCE)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", folder, source),
        ],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it: the folder of its programs.

    Its dependencies are this environment's. A .pth file adds them to the path, and what it adds is
    not searched for further .pth files: the source tree, installed here in place, stays out.
    """
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment, with_pip=False)
    programs = environment / "bin"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"),
            *("--no-deps", "--no-index", "--disable-pip-version-check", wheel),
        ],
        check=True,
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def _run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _sources(package: str, *patterns: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_four_packages_and_nothing_else(contents: set[str]) -> None:
    folders = {name.split("/", 1)[0] for name in contents}
    metadata = {folder for folder in folders if folder.endswith(".dist-info")}

    assert len(metadata) == 1
    assert folders - metadata == set(PACKAGES)


def test_wheel_holds_every_module(contents: set[str]) -> None:
    for package in PACKAGES:
        assert _sources(package, "**/*.py") <= contents


def test_wheel_holds_migrations_with_their_sql(contents: set[str]) -> None:
    migrations = _sources("store", "migrations/**/*")

    assert "store/migrations/env.py" in migrations
    assert any(name.endswith(".sql") for name in migrations)
    assert migrations <= contents


def test_wheel_holds_the_page(contents: set[str]) -> None:
    static = _sources("handlers", "static/**/*")

    assert "handlers/static/index.html" in static
    assert static <= contents
    assert {f"{CLIENT}/{name}" for name in CLIENT_FILES} <= contents


def test_wheel_holds_no_leftovers(contents: set[str]) -> None:
    source = {name for package in PACKAGES for name in _sources(package, "**/*")}
    source |= {f"{CLIENT}/{name}" for name in CLIENT_FILES}

    assert {name for name in contents if ".dist-info/" not in name} <= source


def test_wheel_holds_its_licence(contents: set[str]) -> None:
    assert any(name.endswith("/LICENSE") and ".dist-info/" in name for name in contents)


def test_everything_imports_away_from_the_source(installed: Path, tmp_path: Path) -> None:
    found = json.loads(
        _run(installed / "python", "-W", "error", "-c", _IMPORT_EVERYTHING, cwd=tmp_path)
    )

    for origin in found["origins"].values():
        assert Path(origin).is_relative_to(installed.parent)
    assert "gateway.cli" in found["modules"]


def test_the_four_names_are_ours_alone(installed: Path, tmp_path: Path) -> None:
    """No dependency installs a `metrics` of its own, and we install no `tests`."""
    owners = json.loads(_run(installed / "python", "-c", _IMPORT_EVERYTHING, cwd=tmp_path))[
        "owners"
    ]

    assert {name: owners[name] for name in PACKAGES} == {name: ["capegate"] for name in PACKAGES}
    assert owners["scripts"] == owners["tests"] == []


def test_alembic_reads_the_installed_migrations(installed: Path, tmp_path: Path) -> None:
    revisions = _run(installed / "python", "-c", _LIST_REVISIONS, cwd=tmp_path).split()

    assert revisions
    assert len(revisions) == len(_sources("store", "migrations/versions/*.py"))


def test_the_page_is_served_from_the_installation(installed: Path, tmp_path: Path) -> None:
    folder = Path(_run(installed / "python", "-c", _LOAD_PAGE, cwd=tmp_path).strip())

    assert folder.is_relative_to(installed.parent)
    for name in CLIENT_FILES:
        assert (folder / name).read_bytes() == (ROOT / CLIENT_SOURCE / name).read_bytes()


def test_the_image_is_built_from_all_that_the_wheel_is() -> None:
    """The engine is given what .dockerignore lets through, and copies what the Dockerfile names."""
    sources = [*PACKAGES, CLIENT_SOURCE]
    copied = re.findall(r"^COPY (\S+) \1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    given = (ROOT / ".dockerignore").read_text().splitlines()

    assert sorted(copied) == sorted(sources)
    assert {f"!{source}" for source in sources} <= set(given)


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    said = _run(installed / "capegate", "--help", cwd=tmp_path)

    assert "Usage: capegate" in said
    for command in ("serve", "migrate", "check", "token"):
        assert command in said
