"""Ends a test server and removes its folder once the process that started it is gone.

Run as `python -m tests.support.reaper DATA FOLDER` with a pipe as standard input. The pipe's other
end is closed by the owner, or by the system when the owner was killed.
"""

import shutil
import signal
import sys
from pathlib import Path

from tests.support.cluster import find_postmaster, wait_until_ended


def main(data: Path, folder: Path) -> None:
    sys.stdin.buffer.read()
    postmaster = find_postmaster(data)
    if postmaster is not None:
        # "Immediate": nothing in there is of use to anybody.
        postmaster.send_signal(signal.SIGQUIT)
        wait_until_ended([postmaster])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
