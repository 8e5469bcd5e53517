"""Who the embedded PostgreSQL runs as when root starts the gateway: PostgreSQL refuses root itself.

choose(cluster)     the user, made if missing
take_over(…)        give it a folder
let_in(…)           let it reach a folder, and nobody else who couldn't before
open_up(…)          let everybody read a folder that is no secret
"""

import os
import stat
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from store.embedded_errors import EmbeddedServerError

if sys.platform != "win32":  # where EmbeddedServer.start() refuses
    import fcntl
    import pwd

USER_NAME = "capegate"

_ROOT = 0

# What the common systems call the program that adds a user: shadow (Debian, Fedora, …), BusyBox.
_ADD_USER_COMMANDS = (
    ("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"),
    ("adduser", "-S", "-D", "-H", "-s", "/sbin/nologin"),
)

# Seconds for others who change /etc/passwd right now: it is locked then, and adding a user fails.
_ADD_USER_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class ServerUser:
    """A system user, by number: a data folder from another machine may belong to a nameless one."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """For people, and for PostgreSQL's own files."""
        return user_name(self.uid) or f"user {self.uid}"


def user_name(uid: int) -> str | None:
    """The name in /etc/passwd, if there is one. Containers run as numbers without."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def choose(cluster: Path) -> ServerUser:
    """The user for a server on `cluster`: whoever owns it if it exists, else our dedicated user."""
    try:
        found = cluster.stat()
    except FileNotFoundError:
        return _dedicated()
    # Owned by root: somebody restored or copied it. It is handed to the dedicated user.
    return _dedicated() if found.st_uid == _ROOT else ServerUser(found.st_uid, found.st_gid)


def _dedicated() -> ServerUser:
    deadline = time.monotonic() + _ADD_USER_PATIENCE
    while (found := _find_dedicated()) is None:
        complaint = _add_user()
        if not complaint:
            continue
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f'PostgreSQL refuses to run as root, and the user "{USER_NAME}" can\'t be made to '
                f"run it ({complaint}). Make that user, start the gateway as an ordinary user, or "
                "set DATABASE_URL."
            )
        time.sleep(0.1)
    return found


def _find_dedicated() -> ServerUser | None:
    try:
        entry = pwd.getpwnam(USER_NAME)
    except KeyError:
        return None
    return ServerUser(entry.pw_uid, entry.pw_gid)


def _add_user() -> str:
    """Add the dedicated user. Gives "" if that worked, else the reason.

    Gateways that start together take turns (a lock on /etc, which nothing else locks): `useradd`
    looks for the name before it takes its own lock, and two at once add it twice.
    """
    etc = os.open("/etc", os.O_RDONLY)
    try:
        fcntl.flock(etc, fcntl.LOCK_EX)
        return "" if _find_dedicated() is not None else _run_add_user()
    finally:
        os.close(etc)


def _run_add_user() -> str:
    for command in _ADD_USER_COMMANDS:
        try:
            done = subprocess.run(  # noqa: S603  nothing in it comes from outside
                [*command, USER_NAME], check=False, capture_output=True, text=True
            )
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return ""
        return (done.stderr.strip() or f"{command[0]} failed").splitlines()[-1]
    return "neither useradd nor adduser is there"


def take_over(user: ServerUser, folder: Path) -> None:
    """Give `folder` and everything in it to `user`."""
    os.chown(folder, user.uid, user.gid, follow_symlinks=False)
    for _, folders, files, parent in os.fwalk(folder):
        for name in (*folders, *files):
            os.chown(name, user.uid, user.gid, dir_fd=parent, follow_symlinks=False)


def open_up(folder: Path) -> None:
    """Let everybody read `folder` and what is in it, and run what its owner can run."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0))


def let_in(user: ServerUser, path: Path) -> None:
    """Let `user` pass through every folder above `path`.

    A closed folder (root's home, say) stays closed for everybody else: it gets an access control
    entry for this one user, with which it can be passed through but not listed. Raises
    EmbeddedServerError where the file system has no such entries.
    """
    for folder in path.parents:
        found = folder.stat()
        if found.st_mode & stat.S_IXOTH or found.st_uid == user.uid:
            continue
        try:
            _grant_passage(folder, user.uid)
        except (OSError, AttributeError) as exc:  # AttributeError: only Linux has os.setxattr
            raise EmbeddedServerError(
                f'PostgreSQL runs as the user "{user.name}", because it refuses to run as root, '
                f"and that user may not pass through {folder}, where {path} is. Choose another "
                "data_dir, start the gateway as an ordinary user, or let it pass: "
                f"chmod o+x {folder}"
            ) from exc


# POSIX access control lists as Linux keeps them (include/uapi/linux/posix_acl_xattr.h): a version,
# then entries of tag, permissions and id, sorted by tag and id.
_ACL = "system.posix_acl_access"
_ACL_HEADER = struct.Struct("<I")
_ACL_VERSION = 2
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_NO_ID = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_PASS = 0o1


def _grant_passage(folder: Path, uid: int) -> None:
    entries = _read_acl(folder)
    entries[_USER, uid] = entries.get((_USER, uid), 0) | _PASS
    # The mask limits named users and the group. A list that gets its first named user needs one
    # that leaves the group what it has.
    mask = entries.get((_MASK, _ACL_NO_ID), entries[_GROUP_OBJ, _ACL_NO_ID])
    entries[_MASK, _ACL_NO_ID] = mask | _PASS
    packed = _ACL_HEADER.pack(_ACL_VERSION) + b"".join(
        _ACL_ENTRY.pack(tag, permissions, who)
        for (tag, who), permissions in sorted(entries.items())
    )
    os.setxattr(folder, _ACL, packed)


def _read_acl(folder: Path) -> dict[tuple[int, int], int]:
    """The folder's list, by (tag, id); made from its mode if it has none."""
    if _ACL in os.listxattr(folder):
        raw = os.getxattr(folder, _ACL)
        return {
            (tag, who): permissions
            for tag, permissions, who in _ACL_ENTRY.iter_unpack(raw[_ACL_HEADER.size :])
        }
    mode = folder.stat().st_mode
    return {
        (_USER_OBJ, _ACL_NO_ID): mode >> 6 & 0o7,
        (_GROUP_OBJ, _ACL_NO_ID): mode >> 3 & 0o7,
        (_OTHER, _ACL_NO_ID): mode & 0o7,
    }
