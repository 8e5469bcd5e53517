"""PostgreSQL through asyncpg: pool, embedded server, migrations, SQL by subject."""
