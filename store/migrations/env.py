"""Alembic's environment. `store.revisions` runs it, with the connection and its transaction."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    on_version_apply=attributes["on_version_apply"],
)
context.run_migrations()
