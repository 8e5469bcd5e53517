"""Sessions that a stopping gateway leaves for the next one in its place, and the key they share."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Only the stubs know these as generic.
Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"


class SavedRow(NamedTuple):
    """One saved session; `state` is what `gateway.saved_sessions` made of it."""

    id: bytes
    saved_at: datetime
    expires_at: datetime
    state: bytes


_KEY = """
with made as (
    insert into session_keys (key) values ($1) on conflict do nothing returning key
)
select key from made union all select key from session_keys limit 1
"""

_TAKE = """
delete from saved_sessions where node = $1 returning id, saved_at, expires_at, state
"""

_FORGET = "delete from saved_sessions where expires_at < $1"


async def session_key(connection: Connection, proposal: bytes) -> bytes:
    """The key that signs resume tokens: the one there is, or the proposal if there is none yet."""
    key = None
    while key is None:  # none is seen while another process is about to commit the first one
        key = await connection.fetchval(_KEY, proposal)
    return bytes(key)


async def save(connection: Connection, node: str, rows: Iterable[SavedRow]) -> None:
    """Leave sessions for the next process of this name; all of them or none."""
    async with connection.transaction():
        await connection.execute("delete from saved_sessions where node = $1", node)
        await connection.copy_records_to_table(
            "saved_sessions",
            records=[(row.id, node, row.saved_at, row.expires_at, row.state) for row in rows],
            columns=["id", "node", "saved_at", "expires_at", "state"],
        )


async def take(connection: Connection, node: str) -> list[SavedRow]:
    """What the former process of this name left. It is left once: after this it is ours alone."""
    return [SavedRow(*row) for row in await connection.fetch(_TAKE, node)]


async def forget_expired(connection: Connection, now: datetime) -> int:
    """Remove what nobody took in time; returns how many they were."""
    status = await connection.execute(_FORGET, now)
    return int(status.rpartition(" ")[2])
