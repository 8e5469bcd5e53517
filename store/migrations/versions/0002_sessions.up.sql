-- Sessions across a restart: the key that signs resume tokens, and what a stopping process leaves.

create table session_keys (
    is_only boolean primary key default true check (is_only),
    key bytea not null,
    created_at timestamptz not null default now()
);

comment on table session_keys is
    'The one key that signs the resume tokens of every gateway on this database. Made by the first one; delete the row and restart to invalidate all tokens.';
comment on column session_keys.is_only is 'Always true: there is one row.';
comment on column session_keys.key is 'Random bytes.';
comment on column session_keys.created_at is 'When it was made.';

create table saved_sessions (
    id bytea primary key,
    node text collate "C" not null,
    saved_at timestamptz not null,
    expires_at timestamptz not null,
    state bytea not null
);
create index on saved_sessions (node);
create index on saved_sessions (expires_at);

comment on table saved_sessions is
    'Sessions that a stopping gateway left for the next one in its place, which takes and removes them when it starts.';
comment on column saved_sessions.id is 'What the session''s resume token names.';
comment on column saved_sessions.node is 'The node''s name, the same before and after the restart.';
comment on column saved_sessions.saved_at is 'The moment from which the times inside count.';
comment on column saved_sessions.expires_at is 'When the session ends if nobody comes back. Rows that nobody took are removed after this.';
comment on column saved_sessions.state is 'The session, its client and its unacknowledged frames, as MessagePack.';
