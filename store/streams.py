"""The publication log: streams, their positions and their publications.

A *stream* is the logged life of one channel: an epoch, and offsets 1, 2, 3, … without gaps in the
order of commits. Lock order, everywhere: the publisher's row first, then streams by name.

Group commits are fenced. Each gateway process owns one row of `publishers` and numbers its batches;
a batch is written only if its number is the next one, in the same transaction. So a batch whose
answer was lost with the connection can simply be sent again: either it never happened and happens
now, or it had happened, nothing is written, and `outcome` says where its publications are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg
import orjson

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Only the stubs know these as generic.
Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as the database knew it at one moment.

    `top` is the last offset given out, 0 for none. Publications at or below `floor` are gone.
    """

    id: int
    channel: str
    epoch: str
    top: int
    floor: int


class Entry(NamedTuple):
    """One publication to store. `data`, `info` and `tags` are JSON in UTF-8."""

    stream_id: int
    data: bytes
    info: bytes | None
    tags: bytes | None
    key: str


class Placed(NamedTuple):
    """Where an entry is: its offset, the stream's epoch, and whether it was there before."""

    offset: int
    epoch: str
    duplicate: bool


class Row(NamedTuple):
    """One stored publication."""

    offset: int
    published_at: datetime
    data: bytes
    info: bytes | None
    tags: bytes | None


class Fenced(Exception):
    """A batch of that number has been written already."""


class FenceLost(Exception):
    """The database knows less about a process's batches than the process itself.

    It was restored from a backup, or a standby took over that had missed the last commits. `use_up`
    makes the fence good again.
    """


_REGISTER = """
insert into publishers (node) values ($1)
"""

_CREATE_STREAMS = """
insert into streams (channel, epoch)
select channel, epoch from unnest($1::text[], $2::text[]) as n (channel, epoch) order by channel
on conflict (channel) do nothing
"""

_FIND_STREAMS = """
select id, channel, epoch, top, floor from streams where channel = any ($1::text[])
"""

# One statement is one transaction and one round trip. `gate` fences, `locked` takes the row locks
# in name order (UPDATE alone would take them in any order and could deadlock with another process).
_COMMIT = """
with gate as (
    select from publishers where node = $1 and batch = $2::bigint - 1 for update
), locked as (
    select id from streams
    where id = any ($3::bigint[]) and exists (select from gate)
    order by channel
    for update
), bumped as (
    update streams s set top = s.top + n.count, updated_at = $5
    from unnest($3::bigint[], $4::int[]) as n (id, count), locked
    where s.id = n.id and locked.id = s.id
    returning s.id, s.top - n.count as base, s.epoch
), stored as (
    insert into publications (stream_id, "offset", published_at, data, info, tags)
    select r.stream_id, b.base + r.ordinal, $5, r.data, r.info, r.tags
    from unnest($6::bigint[], $7::int[], $8::bytea[], $9::bytea[], $10::bytea[])
        as r (stream_id, ordinal, data, info, tags)
    join bumped b on b.id = r.stream_id
)
update publishers set batch = $2, updated_at = $5, positions = (
    select coalesce(jsonb_agg(jsonb_build_array(id, base, epoch)), '[]') from bumped
)
where node = $1 and exists (select from gate)
returning positions
"""

_LOCK = """
select id, epoch from streams where id = any ($1::bigint[]) order by channel for update
"""

_FIND_KEYS = """
select k.stream_id, k.key, k."offset"
from idempotency_keys k
join unnest($1::bigint[], $2::text[]) as n (stream_id, key) using (stream_id, key)
where k.created_at >= $3
"""

_STORE_KEYS = """
insert into idempotency_keys (stream_id, key, "offset", created_at)
select stream_id, key, "offset", $4
from unnest($1::bigint[], $2::text[], $3::bigint[]) as n (stream_id, key, "offset")
on conflict (stream_id, key) do update
set "offset" = excluded."offset", created_at = excluded.created_at
"""

_STORE_PLACES = """
update publishers set positions = $2::jsonb where node = $1
"""

# Like a commit, it waits for an attempt that is under way, and then finds the number taken.
_USE_UP = """
insert into publishers as p (node, batch) values ($1, $2)
on conflict (node) do update set batch = excluded.batch, positions = null, updated_at = now()
where p.batch < excluded.batch
"""

_OUTCOME = """
select batch, positions from publishers where node = $1
"""

_PAGE = """
select s.epoch, s.top, s.floor, p."offset", p.published_at, p.data, p.info, p.tags
from streams s
left join lateral (
    select * from publications
    where stream_id = s.id and "offset" > greatest($2, s.floor) and "offset" <= $3
        and published_at >= $4
    order by "offset"
) p on true
where s.channel = $1
order by p."offset"
"""

_HISTORY = """
select p."offset", p.published_at, p.data, p.info, p.tags
from publications p
where p.stream_id = $1 and p."offset" > $2 and p."offset" < $3 and p.published_at >= $4
order by p."offset" {direction}
limit $5
"""

_CLEAR = """
update streams set floor = top where channel = $1
"""

# Most streams have nothing to delete, as the first look at their oldest publication tells. The
# streams' rows are locked last, for a short time, and in name order as everywhere.
_TRIM = """
with due as materialized (
    select n.id, n.keep_above, n.cutoff
    from unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) as n (id, keep_above, cutoff)
    cross join lateral (
        select "offset", published_at from publications
        where stream_id = n.id
        order by "offset"
        limit 1
    ) first
    where first."offset" <= n.keep_above or first.published_at < n.cutoff
), old as materialized (
    select due.id, p."offset"
    from due cross join lateral (
        select "offset", published_at from publications
        where stream_id = due.id
        order by "offset"
        limit $4
    ) p
    where p."offset" <= due.keep_above or p.published_at < due.cutoff
), gone as (
    delete from publications p using old
    where p.stream_id = old.id and p."offset" = old."offset"
    returning p.stream_id, p."offset"
), floors as (
    select stream_id, max("offset") as floor, count(*) as deleted from gone group by stream_id
), locked as (
    select s.id, f.floor from streams s join floors f on f.stream_id = s.id
    order by s.channel
    for update of s
), raised as (
    update streams s set floor = greatest(s.floor, l.floor) from locked l where s.id = l.id
)
select stream_id, deleted from floors
"""

# "Is there one?" as a subquery with a limit: `exists` lets the planner hash all publications.
_TRIMMABLE = """
select id, channel, epoch, top, floor from streams
where id > $1
    and (floor < top or (select true from publications where stream_id = id limit 1))
order by id
limit $2
"""

_FORGET_STREAMS = """
with idle as (
    select s.id from streams s
    where (s.updated_at < $1 or (s.top = 0 and s.updated_at < $2))
        and (select true from publications where stream_id = s.id limit 1) is null
    order by s.channel
    limit $3
    for update skip locked
)
delete from streams s using idle where s.id = idle.id
"""

# One that a commit is about to use again is left to it: waiting for it could be a deadlock.
_FORGET_KEYS = """
delete from idempotency_keys where ctid = any (array(
    select ctid from idempotency_keys where created_at < $1 limit $2 for update skip locked
))
"""

_FORGET_PUBLISHERS = """
delete from publishers where updated_at < $1
"""


async def register_publisher(connection: Connection, node: str) -> None:
    """Make the row that fences the group commits of the process called `node` (a fresh name)."""
    await connection.execute(_REGISTER, node)


async def find_streams(connection: Connection, channels: Sequence[str]) -> dict[str, Stream]:
    """The streams that exist of these channels, by channel."""
    rows = await connection.fetch(_FIND_STREAMS, channels)
    return {row["channel"]: Stream(**row) for row in rows}


async def open_streams(connection: Connection, epochs: Mapping[str, str]) -> dict[str, Stream]:
    """The streams of these channels, made with the given epoch where they don't exist."""
    streams = await find_streams(connection, list(epochs))
    missing = [channel for channel in epochs if channel not in streams]
    if missing:
        await connection.execute(_CREATE_STREAMS, missing, [epochs[channel] for channel in missing])
        streams |= await find_streams(connection, missing)
    return streams


async def commit(
    connection: Connection,
    node: str,
    batch: int,
    entries: Sequence[Entry],
    published_at: datetime,
    keys_since: datetime,
) -> list[Placed | None]:
    """Store a batch and return where each entry is; None where its stream no longer exists.

    Entries of one stream get consecutive offsets in the order given. An entry whose idempotency key
    was used since `keys_since` is not stored again. Raises `Fenced` when the batch's number is not
    the next one: see `outcome`.
    """
    if not any(entry.key for entry in entries):
        return _places(entries, await _store(connection, node, batch, entries, published_at))
    async with connection.transaction():
        return await _commit_keyed(connection, node, batch, entries, published_at, keys_since)


async def _store(
    connection: Connection,
    node: str,
    batch: int,
    entries: Sequence[Entry],
    published_at: datetime,
) -> Any:
    counts: dict[int, int] = {}
    ids, ordinals = [], []
    for entry in entries:
        ordinal = counts.get(entry.stream_id, 0) + 1
        counts[entry.stream_id] = ordinal
        ids.append(entry.stream_id)
        ordinals.append(ordinal)
    positions = await connection.fetchval(
        _COMMIT,
        node,
        batch,
        list(counts),
        list(counts.values()),
        published_at,
        ids,
        ordinals,
        [entry.data for entry in entries],
        [entry.info for entry in entries],
        [entry.tags for entry in entries],
    )
    if positions is None:
        raise Fenced(f"batch {batch} of {node}")
    return orjson.loads(positions)


def _places(entries: Sequence[Entry], positions: Sequence[Any]) -> list[Placed | None]:
    """Give each entry its place from the streams' tops before the batch."""
    tops = {stream_id: (base, epoch) for stream_id, base, epoch in positions}
    places: list[Placed | None] = []
    for entry in entries:
        found = tops.get(entry.stream_id)
        if found is None:
            places.append(None)
            continue
        base, epoch = found
        tops[entry.stream_id] = (base + 1, epoch)
        places.append(Placed(base + 1, epoch, False))
    return places


async def _commit_keyed(
    connection: Connection,
    node: str,
    batch: int,
    entries: Sequence[Entry],
    published_at: datetime,
    keys_since: datetime,
) -> list[Placed | None]:
    """`commit` for a batch with idempotency keys, inside a transaction."""
    owner = await connection.fetchval(
        "select batch from publishers where node = $1 for update", node
    )
    if owner != batch - 1:
        raise Fenced(f"batch {batch} of {node}")
    locked = await connection.fetch(_LOCK, list({entry.stream_id for entry in entries}))
    epochs = {row["id"]: row["epoch"] for row in locked}
    keyed = [entry for entry in entries if entry.key]
    used = {
        (row["stream_id"], row["key"]): row["offset"]
        for row in await connection.fetch(
            _FIND_KEYS, [e.stream_id for e in keyed], [e.key for e in keyed], keys_since
        )
    }
    fresh: list[Entry] = []
    first_use: dict[tuple[int, str], int] = {}
    for entry in entries:
        name = (entry.stream_id, entry.key)
        if entry.key and (name in used or name in first_use):
            continue
        if entry.key:
            first_use[name] = len(fresh)
        fresh.append(entry)
    stored = _places(fresh, await _store(connection, node, batch, fresh, published_at))
    new_keys = [
        (stream_id, key, place.offset)
        for (stream_id, key), index in first_use.items()
        if (place := stored[index]) is not None
    ]
    if new_keys:
        await connection.execute(_STORE_KEYS, *map(list, zip(*new_keys, strict=True)), published_at)
    places: list[Placed | None] = []
    fresh_places = iter(stored)
    seen: set[tuple[int, str]] = set()
    for entry in entries:
        name = (entry.stream_id, entry.key)
        if entry.key and name in used:
            epoch = epochs.get(entry.stream_id)
            places.append(None if epoch is None else Placed(used[name], epoch, True))
        elif entry.key and name in seen:
            first = stored[first_use[name]]
            places.append(None if first is None else first._replace(duplicate=True))
        else:
            seen.add(name)
            places.append(next(fresh_places))
    await connection.execute(
        _STORE_PLACES,
        node,
        orjson.dumps({"places": [place and list(place) for place in places]}).decode(),
    )
    return places


async def use_up(connection: Connection, node: str, batch: int) -> None:
    """Make sure that no attempt to write this batch can succeed any more, and that the next can.

    If one did before, its publications are in the log.
    """
    await connection.execute(_USE_UP, node, batch)


async def outcome(
    connection: Connection, node: str, batch: int, entries: Sequence[Entry]
) -> list[Placed | None]:
    """Where the entries of a batch are that was written by an attempt whose answer got lost.

    Raises `FenceLost` when the database doesn't remember the batch.
    """
    row = await connection.fetchrow(_OUTCOME, node)
    if row is None or row["batch"] != batch:
        last = "none" if row is None else row["batch"]
        raise FenceLost(f"batch {batch} of {node} is written, yet the last known one is {last}")
    positions = orjson.loads(row["positions"] or b"[]")
    if isinstance(positions, dict):
        return [None if place is None else Placed(*place) for place in positions["places"]]
    return _places(entries, positions)


class Page(NamedTuple):
    """A stretch of a stream as it was at one moment."""

    epoch: str
    top: int
    floor: int
    rows: list[Row]


async def read_page(
    connection: Connection, channel: str, after: int, until: int, not_before: datetime
) -> Page | None:
    """The publications with offsets in (after, until], oldest first; None without a stream."""
    rows = await connection.fetch(_PAGE, channel, after, until, not_before)
    if not rows:
        return None
    first = rows[0]
    return Page(
        first["epoch"],
        first["top"],
        first["floor"],
        [Row(*row[3:]) for row in map(tuple, rows) if row[3] is not None],
    )


async def read_history(
    connection: Connection,
    stream: Stream,
    *,
    above: int,
    below: int,
    not_before: datetime,
    limit: int,
    reverse: bool,
) -> list[Row]:
    """Publications with `above < offset < below`, oldest first or, reversed, newest first."""
    query = _HISTORY.format(direction="desc" if reverse else "asc")
    rows = await connection.fetch(query, stream.id, above, below, not_before, limit)
    return [Row(*row) for row in rows]


async def clear(connection: Connection, channel: str) -> None:
    """Remove a channel's publications; its epoch and offsets go on.

    They disappear at once and are deleted by the next `trim`.
    """
    await connection.execute(_CLEAR, channel)


async def trimmable(connection: Connection, after_id: int, limit: int) -> list[Stream]:
    """Streams that may hold publications, in pages by id."""
    rows = await connection.fetch(_TRIMMABLE, after_id, limit)
    return [Stream(**row) for row in rows]


async def trim(
    connection: Connection,
    keep: Sequence[tuple[int, int, datetime]],
    batch_rows: int,
) -> dict[int, int]:
    """Delete what is too old: of each `(stream id, keep above this offset, not before)`.

    Looks at the `batch_rows` oldest of each stream, so that no statement holds locks for long, and
    returns how many were deleted of each: one that reaches `batch_rows` has more.
    """
    ids, offsets, cutoffs = (list(column) for column in zip(*keep, strict=True))
    rows = await connection.fetch(_TRIM, ids, offsets, cutoffs, batch_rows)
    return {row["stream_id"]: row["deleted"] for row in rows}


async def forget_streams(
    connection: Connection, idle_since: datetime, empty_since: datetime, limit: int
) -> int:
    """Delete empty streams without a publication since then; they come back in a new epoch.

    Those that never had one go by `empty_since`. Returns how many.
    """
    return _count(await connection.execute(_FORGET_STREAMS, idle_since, empty_since, limit))


async def touch_publisher(connection: Connection, node: str) -> None:
    """Say that the process is alive, so that its row stays."""
    await connection.execute("update publishers set updated_at = now() where node = $1", node)


async def forget_keys(connection: Connection, before: datetime, limit: int) -> int:
    """Delete idempotency keys of before then; returns how many."""
    return _count(await connection.execute(_FORGET_KEYS, before, limit))


async def forget_publishers(connection: Connection, before: datetime) -> int:
    """Delete the rows of processes that have not committed since then; returns how many."""
    return _count(await connection.execute(_FORGET_PUBLISHERS, before))


def _count(command_tag: str) -> int:
    return int(command_tag.rpartition(" ")[2])
