"""Sessions across a restart: the key of resume tokens, and saved sessions."""

from store.revisions import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_sessions.up.sql")


def downgrade() -> None:
    run_sql("0002_sessions.down.sql")
