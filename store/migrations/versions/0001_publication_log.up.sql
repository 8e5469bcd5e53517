-- The publication log: what the gateway has acknowledged, channel by channel.

create table streams (
    id bigint generated always as identity primary key,
    -- "C": byte order, the same as the gateway's own sorting, on every platform; and an upgrade of the
    -- system's locales can't break the index.
    channel text collate "C" not null unique,
    epoch text not null,
    top bigint not null default 0,
    floor bigint not null default 0,
    updated_at timestamptz not null default now()
)
-- Every publish updates its channel's row. Half of each page stays free for the new versions, and
-- no updated column is indexed, so these are HOT updates: no index entry, and the page is tidied in
-- passing instead of by vacuum.
with (fillfactor = 50);

comment on table streams is
    'One row per channel with history. Locked in channel order by each group commit, which makes offsets gapless and in commit order.';
comment on column streams.channel is 'The channel''s name, namespace included.';
comment on column streams.epoch is
    'Names this life of the stream. It changes when the stream is forgotten and begins again at 1; positions of another epoch mean nothing.';
comment on column streams.top is 'The offset of the last publication; 0 before the first.';
comment on column streams.floor is 'Publications with this offset or a lower one were removed from history; 0 if none were.';
comment on column streams.updated_at is 'When the stream last changed. Idle streams are forgotten by this.';

-- No foreign keys to streams: checking one locks the stream's row again for every publication, and
-- only the log's own statements write here.
create table publications (
    stream_id bigint not null,
    "offset" bigint not null,
    published_at timestamptz not null,
    data bytea not null,
    info bytea,
    tags bytea,
    primary key (stream_id, "offset")
);

comment on table publications is 'The publications that history still holds. Rows are inserted and deleted, never updated.';
comment on column publications.stream_id is 'streams.id of the channel.';
comment on column publications."offset" is 'The position in the channel, from 1 without gaps, in commit order.';
comment on column publications.published_at is 'When the gateway put it into its batch. History by time ends by this.';
comment on column publications.data is 'The payload, JSON text as it came, byte for byte.';
comment on column publications.info is 'The publisher as subscribers see it (user, client, conn_info), JSON text; null if published by a server.';
comment on column publications.tags is 'The publication''s tags, a JSON object of strings; null if none.';

create table idempotency_keys (
    stream_id bigint not null,
    key text collate "C" not null,
    "offset" bigint not null,
    created_at timestamptz not null default now(),
    primary key (stream_id, key)
);
create index on idempotency_keys (created_at);

comment on table idempotency_keys is
    'Keys that publishers gave, so that a repeated publish gets the first one''s position and writes nothing. Removed after the idempotency window.';
comment on column idempotency_keys.stream_id is 'streams.id of the channel: a key counts within one channel.';
comment on column idempotency_keys.key is 'The key as the publisher gave it.';
comment on column idempotency_keys."offset" is 'The offset of the publication that came first with this key.';
comment on column idempotency_keys.created_at is 'When that publication was committed. The window is counted from here.';

create table publishers (
    node text primary key,
    batch bigint not null default 0,
    positions jsonb,
    updated_at timestamptz not null default now()
)
-- Few rows, each updated once per group commit, thousands of times a second: pages that are mostly
-- free keep these updates HOT between two vacuums.
with (fillfactor = 20);

comment on table publishers is
    'One row per gateway process, fencing its group commits: a batch whose answer was lost is looked up here before it is sent again, and is written once.';
comment on column publishers.node is 'The gateway process''s id, a new one at every start.';
comment on column publishers.batch is 'The number of this process''s last committed batch; they count up from 1.';
comment on column publishers.positions is 'The positions that batch was given, for the reply whose commit was not heard of.';
comment on column publishers.updated_at is 'When that batch was committed. Rows of processes that are gone are removed by this.';

create view messages as
    select
        s.channel,
        p."offset",
        p.published_at,
        convert_from(p.data, 'UTF8') as data,
        convert_from(p.info, 'UTF8') as info,
        s.epoch
    from publications p
    join streams s on s.id = p.stream_id;

comment on view messages is 'For people with psql: the log with readable payloads. The gateway does not use it.';
