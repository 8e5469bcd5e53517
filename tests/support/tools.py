"""Programs that tests drive and that don't come from PyPI: a browser, Node, npm's packages.

`python -m tests.support.tools` succeeds where there is a Chromium, for scripts/test.
"""

import os
import shutil
import sys
from pathlib import Path

SDK_FOLDER = Path(__file__).resolve().parent.parent / "sdk_js"
"""Where `node` finds the public JavaScript client: run scripts that import it from here."""

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class ToolMissing(Exception):
    """A program that the tests need is not on this machine. `scripts/test` installs all of them."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is missing; scripts/test installs it")


def chromium() -> str | None:
    """The path of the system's Chromium; None where there is none and Playwright has its own.

    Either can be given to Playwright's `launch` as `executable_path`.
    """
    return next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)


def has_chromium() -> bool:
    """Whether the browser that `chromium` names is there. Not for use under a running loop."""
    if chromium() is not None:
        return True
    # Imported here because it starts a process, and only where the system has no Chromium.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return Path(playwright.chromium.executable_path).exists()


def node() -> str:
    """The path of Node."""
    if path := shutil.which("node"):
        return path
    # Beside this Python when it came as a wheel and the environment isn't activated.
    beside = Path(sys.executable).with_name("node")
    if not beside.exists():
        raise ToolMissing("Node")
    return str(beside)


def npm() -> str:
    """The path of npm."""
    path = shutil.which("npm", path=f"{os.environ['PATH']}{os.pathsep}{Path(node()).parent}")
    if path is None:
        raise ToolMissing("npm")
    return path


if __name__ == "__main__":
    sys.exit(not has_chromium())
