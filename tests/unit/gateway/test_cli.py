"""The command line: what each command prints, where, and with which exit code."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.auth import MINT_TTL, TokenVerifier
from gateway.cli import main
from gateway.protocol.claims import ConnectClaims
from gateway.secrets_file import complete
from gateway.settings import Settings, load
from tests.support import tokens
from tests.support.tokens import SECRET

ROOT = Path(__file__).resolve().parents[3]
EXTERNAL = {"DATABASE_URL": "postgresql://someone:hunter2@127.0.0.1:1/chat"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are kept where the command is run."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ, catch_exceptions=False)


def fail(*arguments: str, **environ: str) -> list[str]:
    """The lines on stderr of a command that must fail and print nothing else."""
    result = run(*arguments, **environ)
    assert result.exit_code == 1
    assert result.stdout == ""
    return result.stderr.splitlines()


def claims_of(token: str, settings: Settings, now: float) -> ConnectClaims:
    return TokenVerifier(settings).verify_connect(token, now)


def issued_at(token: str) -> float:
    import jwt

    payload = jwt.decode(token, options={"verify_signature": False})
    return float(payload["iat"])


# token


def test_token_prints_only_the_token() -> None:
    result = run(
        "token", "--user", "alice", GATEWAY_TOKEN_HMAC_SECRET=SECRET, GATEWAY_API_KEY="x" * 16
    )

    assert (result.exit_code, result.stderr) == (0, "")
    token = result.stdout.removesuffix("\n")
    now = issued_at(token)
    settings = load(None, {"GATEWAY_TOKEN_HMAC_SECRET": SECRET})
    claims = claims_of(token, settings, now)
    assert (claims.user, claims.info, claims.expire_at) == ("alice", None, now + MINT_TTL)


def test_token_carries_what_it_was_told() -> None:
    environ = {"GATEWAY_TOKEN_HMAC_SECRET": SECRET, "GATEWAY_TOKEN_AUDIENCE": "us"}
    settings = load(None, environ)
    options = ["--user", "alice", "--ttl", "1h", "--info", '{"name": "Alice"}']

    connect = run("token", *options, **environ).stdout.strip()
    subscribe = run("token", *options, "--channel", "$room", **environ).stdout.strip()

    now = issued_at(connect)
    claims = claims_of(connect, settings, now)
    assert (claims.info, claims.expire_at) == (b'{"name":"Alice"}', now + 3600)
    verified = TokenVerifier(settings).verify_subscribe(subscribe, now)
    assert (verified.user, verified.channel) == ("alice", "$room")


def test_token_and_server_share_the_secret_that_was_made() -> None:
    result = run("token", "--user", "alice")

    assert result.exit_code == 0
    # Whoever runs it in the wrong folder learns why the server doesn't take the token.
    assert f"{Path.cwd()}/data/secrets/token_hmac_secret" in result.stderr
    token = result.stdout.strip()
    server = complete(load(None, {}), make=False)
    assert claims_of(token, server, issued_at(token)).user == "alice"
    assert run("token", "--user", "alice").stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '--user'"),
        (("--user", "a", "--ttl", "soon"), "isn't a duration"),
        (("--user", "a", "--info", "{"), "isn't JSON"),
        (("--user", "a", "--info", "NaN"), "isn't JSON"),
    ],
)
def test_token_refuses_options_that_make_no_sense(options: tuple[str, ...], message: str) -> None:
    result = run("token", *options, GATEWAY_TOKEN_HMAC_SECRET=SECRET)

    assert result.exit_code == 2
    assert message in result.stderr


def test_token_says_why_there_is_none() -> None:
    (line,) = fail(
        "token",
        "--user",
        "a",
        **EXTERNAL,
        GATEWAY_TOKEN_EDDSA_PUBLIC_KEY=tokens.public_pem("EdDSA"),
    )
    assert line.startswith("capegate: token_hmac_secret isn't set")
    environ = {"GATEWAY_TOKEN_HMAC_SECRET": SECRET, "GATEWAY_API_KEY": "x" * 16}
    (line,) = fail("token", "--user", "a", "--ttl", "3000d", **environ)
    assert line.startswith("capegate: ttl must be")


def test_secrets_that_cannot_be_kept_are_one_clear_line() -> None:
    Path("data").write_text("a file where the folder should be")

    (line,) = fail("token", "--user", "a")

    assert "can't be kept" in line


# check


def test_check_prints_what_is_in_force_and_where_from() -> None:
    Path("capegate.toml").write_text(
        'ping_interval = "1m"\n[[namespaces]]\nname = "chat"\npresence = true\n'
    )

    result = run("check", "--config", "capegate.toml", GATEWAY_PORT="81")

    assert (result.exit_code, result.stderr) == (0, "")
    rows = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line
    }
    assert rows["setting"].split() == ["value", "from"]
    assert rows["ping_interval"].split(maxsplit=1) == ["60", "file capegate.toml"]
    assert rows["port"].split(maxsplit=1) == ["81", "environment variable GATEWAY_PORT"]
    assert rows["pong_timeout"].split() == ["8", "default"]
    assert rows["database_url"].startswith("embedded, in data")
    assert rows["token_hmac_secret"].startswith("not made yet")
    assert rows["channel"].startswith("every option off")
    assert rows["namespaces.chat.presence"].split(maxsplit=1) == ["true", "file capegate.toml"]
    assert "Everything is in order." in result.stdout
    assert not Path("data").exists()


def test_check_shows_every_setting() -> None:
    shown = {line.split()[0] for line in run("check").stdout.splitlines() if line}

    assert set(Settings.model_fields) - {"channel", "namespace_settings"} <= shown


def test_check_shows_what_development_opens() -> None:
    result = run("check", GATEWAY_DEVELOPMENT="1")

    assert "namespaces.chat.history_size" in result.stdout
    assert "channel.history_size" in result.stdout


def test_check_shows_no_secret() -> None:
    result = run(
        "check",
        GATEWAY_TOKEN_HMAC_SECRET=SECRET,
        GATEWAY_API_KEY="hunter2-hunter2-hunter2",
        GATEWAY_REDIS_URL="redis://:hunter2@r",
        **EXTERNAL,
    )

    assert result.exit_code == 1
    assert "********" in result.stdout
    for text in (result.stdout, result.stderr):
        assert "hunter2" not in text
        assert SECRET not in text


def test_check_tells_every_problem_at_once_the_database_among_them() -> None:
    lines = fail("check", **EXTERNAL, GATEWAY_PORT="x", GATEWAY_INSECURE="1")

    subjects = [line.removeprefix("capegate: ").split()[0] for line in lines]
    assert subjects == ["port", "insecure", "token_hmac_secret", "database_url"]
    assert "nothing listens there" in lines[-1]


def test_check_does_not_try_a_database_url_that_is_wrong_anyway() -> None:
    lines = fail("check", DATABASE_URL="mysql://db", GATEWAY_TOKEN_HMAC_SECRET=SECRET)

    assert len(lines) == 1


def test_check_asks_for_the_key_set() -> None:
    result = run("check", GATEWAY_TOKEN_JWKS_URL="http://127.0.0.1:1/keys")

    assert result.exit_code == 1
    assert "token_jwks_url (environment variable" in result.stderr
    assert "gives no key set" in result.stderr


def test_check_gives_notes_that_are_no_problems() -> None:
    result = run("check", GATEWAY_DEVELOPMENT="1", GATEWAY_HOST="0.0.0.0")

    assert result.exit_code == 0
    assert "note: development is on" in result.stdout


# serve, migrate


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_a_bad_configuration_is_a_line_for_each_problem(command: str) -> None:
    Path("capegate.toml").write_text("prot = 1\npong_timeout = 30\n")

    lines = fail(command, "--config", "capegate.toml")

    assert len(lines) == 2
    assert all(line.startswith("capegate: ") for line in lines)
    assert not Path("data").exists()


def test_a_missing_configuration_file_is_one_line() -> None:
    (line,) = fail("serve", "--config", "nowhere.toml")

    assert "nowhere.toml" in line
    assert "doesn't exist" in line


def test_what_the_command_line_says_is_checked_with_the_rest() -> None:
    (line,) = fail("serve", "--host", "")
    assert line.startswith("capegate: host (command line --host)")
    assert run("serve", "--port", "70000").exit_code == 2


# version, and the module


def test_version() -> None:
    expected = f"capegate {version('capegate')}\n"

    assert run("version").stdout == expected
    assert run("--version").stdout == expected


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.startswith("Usage: capegate ")


def test_help_and_token_import_neither_server_nor_database() -> None:
    """They are typed by people, who notice half a second."""
    program = (
        "import sys; from gateway.cli import main; main(sys.argv[1:], standalone_mode=False);"
        "print([name for name in ('aiohttp', 'asyncpg', 'alembic', 'gateway.app')"
        " if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["--help"], ["token", "--user", "alice"], ["version"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr.splitlines()[-1] == "[]"
