"""The revisions as files."""

import re
import subprocess
import sys

from alembic.config import Config
from alembic.script import ScriptDirectory

from store.migrate import MIGRATIONS, revisions

_VERSIONS = MIGRATIONS / "versions"


def test_alembic_sees_the_same_revisions_in_the_same_order() -> None:
    """`revisions()` goes by the file names, so that a start without work needs no Alembic."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == revisions()


def test_revisions_are_numbered_without_gaps() -> None:
    assert revisions() == tuple(f"{number:04}" for number in range(1, len(revisions()) + 1))


def test_every_revision_has_sql_for_both_ways_and_nothing_else_lies_there() -> None:
    expected = {
        name
        for script in _VERSIONS.glob("*.py")
        for name in (script.name, f"{script.stem}.up.sql", f"{script.stem}.down.sql")
    }
    assert {path.name for path in _VERSIONS.iterdir() if path.is_file()} == expected


def test_every_table_view_and_column_is_explained_where_it_is_made() -> None:
    """Whoever opens the database with psql finds its documentation there."""
    for script in _VERSIONS.glob("*.up.sql"):
        sql = script.read_text()
        for kind, name in re.findall(r"^create (table|view) (\w+)", sql, re.MULTILINE):
            assert f"comment on {kind} {name} is" in sql


def test_importing_it_does_not_import_alembic() -> None:
    """Its import takes a third of a second, which `capegate token` needn't wait for."""
    code = "import sys, store.migrate; sys.exit('alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
