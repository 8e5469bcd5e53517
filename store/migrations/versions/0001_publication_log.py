"""The publication log: streams, publications, idempotency keys and the publishers' fence."""

from store.revisions import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("0001_publication_log.up.sql")


def downgrade() -> None:
    run_sql("0001_publication_log.down.sql")
