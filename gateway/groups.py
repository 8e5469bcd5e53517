"""Members by group, for when most groups have one member: a user's connections."""

from collections.abc import Collection
from typing import Generic, TypeVar

T = TypeVar("T")


class Groups(Generic[T]):
    """Members by the name of their group, in the order in which they came.

    A group of one is held without a dict of its own, which would take 230 bytes. Members are
    compared by identity or hash and must not be dicts.
    """

    def __init__(self) -> None:
        self._groups: dict[str, T | dict[T, None]] = {}

    def __len__(self) -> int:
        """How many groups have members."""
        return len(self._groups)

    def of(self, group: str) -> Collection[T]:
        """A group's members, the oldest first; empty for one that has none."""
        found = self._groups.get(group)
        if found is None:
            return ()
        return found if isinstance(found, dict) else (found,)

    def add(self, group: str, member: T) -> None:
        """Put somebody into a group."""
        found = self._groups.get(group)
        if found is None:
            self._groups[group] = member
        elif isinstance(found, dict):
            found[member] = None
        elif found is not member:
            self._groups[group] = {found: None, member: None}

    def discard(self, group: str, member: T) -> None:
        """Take somebody out, if in."""
        found = self._groups.get(group)
        if found is None:
            return
        if isinstance(found, dict):
            found.pop(member, None)
            if not found:
                del self._groups[group]
        elif found is member:
            del self._groups[group]
