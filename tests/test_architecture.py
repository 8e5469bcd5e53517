"""The shape of the code: who imports whom, and which names are taken."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "handlers", "store", "metrics")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_contracts_are_kept() -> None:
    """The contracts of setup.cfg: packages one way, and a protocol that neither waits nor looks."""
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name == "__init__.py"], ids=_name
)
def test_package_files_hold_only_a_docstring(path: Path) -> None:
    """Re-exports are how import cycles begin."""
    tree = ast.parse(path.read_text())

    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name != "__init__.py"], ids=_name
)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_folder_or_script_shadows_the_standard_library() -> None:
    """A script's own folder comes first on sys.path, and the root when the tests run."""
    names = {
        path.stem
        for folder in (ROOT, ROOT / "scripts")
        for path in folder.iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    }

    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize("folder", ["tests/sdk_js", "clients/js"])
def test_no_lockfile_names_a_registry(folder: str) -> None:
    """Whoever installs takes the packages from where they get theirs; the hashes stay the same."""
    lockfile = (ROOT / folder / "package-lock.json").read_text()

    assert '"integrity"' in lockfile
    assert '"resolved"' not in lockfile
