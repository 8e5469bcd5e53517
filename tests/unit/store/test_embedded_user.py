"""The user that root's PostgreSQL runs as, and its way to the data."""

import os
import stat
from pathlib import Path

import pytest

from store.embedded_user import ServerUser, let_in, open_up

_SOMEBODY = ServerUser(uid=54321, gid=54321)
_ACL = "system.posix_acl_access"


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder in a closed one."""
    folder = tmp_path / "closed" / "open"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    return folder


def test_a_user_without_a_name_has_a_number() -> None:
    assert _SOMEBODY.name == "user 54321"


def test_a_user_is_let_through_closed_folders_and_nobody_else_is(closed: Path) -> None:
    let_in(_SOMEBODY, closed)
    mode = closed.parent.stat().st_mode
    assert not mode & stat.S_IRWXO
    # Of the group's bits, which show the list's mask now, only passing through.
    assert mode & stat.S_IRWXG == stat.S_IXGRP
    assert os.getxattr(closed.parent, _ACL).hex() == (
        "02000000"
        "01000700ffffffff"  # the owner: everything
        "0200010031d40000"  # user 54321: pass through
        "04000000ffffffff"  # the group: nothing
        "10000100ffffffff"  # the mask
        "20000000ffffffff"  # others: nothing
    )


def test_letting_in_twice_changes_nothing_more(closed: Path) -> None:
    let_in(_SOMEBODY, closed)
    before = os.getxattr(closed.parent, _ACL)
    let_in(_SOMEBODY, closed)
    assert os.getxattr(closed.parent, _ACL) == before


def test_another_user_s_entry_stays(closed: Path) -> None:
    let_in(ServerUser(uid=54320, gid=54320), closed)
    let_in(_SOMEBODY, closed)
    found = os.getxattr(closed.parent, _ACL).hex()
    assert "0200010030d40000" in found
    assert "0200010031d40000" in found


def test_a_folder_that_was_closed_again_is_passed_again(closed: Path) -> None:
    """chmod on a folder with a list changes its mask, which takes the passage away."""
    let_in(_SOMEBODY, closed)
    closed.parent.chmod(0o700)
    let_in(_SOMEBODY, closed)
    assert closed.parent.stat().st_mode & stat.S_IXGRP


def test_an_open_folder_is_left_as_it_is(closed: Path) -> None:
    closed.parent.chmod(0o711)
    let_in(_SOMEBODY, closed)
    assert _ACL not in os.listxattr(closed.parent)


def test_opening_up_lets_read_and_run_and_not_write(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir(mode=0o700)
    program, text, link = folder / "program", folder / "text", folder / "link"
    program.touch(0o700)
    text.touch(0o600)
    link.symlink_to("/nowhere")
    open_up(folder)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, program, text)}
    assert modes == {folder: 0o755, program: 0o755, text: 0o644}
