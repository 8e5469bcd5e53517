"""Settings: their sources, their order, and every problem at once."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from gateway.protocol.channels import OPTION_NAMES, ChannelOptions
from gateway.settings import (
    ChannelSettings,
    NamespaceSettings,
    Problem,
    Settings,
    SettingsError,
    load,
)
from gateway.settings_sources import environ_names, setting_names
from tests.support.tokens import OTHER_SECRET, SECRET, jwk, key_set, private_key, public_pem

EXTERNAL = {"DATABASE_URL": "postgresql://someone:pw@db/chat"}


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "capegate.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(config: Path | None = None, /, **environ: str) -> list[Problem]:
    with pytest.raises(SettingsError) as caught:
        load(config, environ)
    return list(caught.value.problems)


def the_problem(config: Path | None = None, /, **environ: str) -> Problem:
    (problem,) = problems(config, **environ)
    return problem


def toml_problem(tmp_path: Path, text: str) -> Problem:
    return the_problem(write(tmp_path, text))


# Sources


def test_without_anything_the_defaults_hold() -> None:
    settings = load(None, {"PATH": "/bin", "HOME": "/root"})

    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.ping_interval == 25.0
    assert settings.source("port") == "default"


def test_environment_goes_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    file = write(tmp_path, 'host = "::1"\nport = 1\nping_interval = "1m"\n')

    settings = load(file, {"GATEWAY_PORT": "2", "GATEWAY_HOST": "::2"}, {"host": "::3"})

    assert (settings.host, settings.port, settings.ping_interval) == ("::3", 2, 60.0)
    assert settings.source("host") == "command line --host"
    assert settings.source("port") == "environment variable GATEWAY_PORT"
    assert settings.source("ping_interval") == f"file {file}"


def test_platform_variables_are_read_and_our_own_go_first() -> None:
    secret = {"GATEWAY_TOKEN_HMAC_SECRET": SECRET}

    settings = load(None, {"PORT": "81", "REDIS_URL": "redis://r", **EXTERNAL, **secret})

    assert settings.port == 81
    assert settings.redis_url == SecretStr("redis://r")
    assert settings.database_url == SecretStr(EXTERNAL["DATABASE_URL"])
    assert settings.source("database_url") == "environment variable DATABASE_URL"
    assert load(None, {"PORT": "81", "GATEWAY_PORT": "82"}).port == 82


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    first, second = write(tmp_path, "port = 1"), tmp_path / "second.toml"
    second.write_text("port = 2")

    assert load(None, {"GATEWAY_CONFIG": str(first)}).port == 1
    assert load(second, {"GATEWAY_CONFIG": str(first)}).port == 2


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1")

    settings = load(file, {"GATEWAY_PORT": "", "GATEWAY_REDIS_URL": "", "GATEWAY_CONFIG": ""})

    assert (settings.port, settings.redis_url) == (1, None)


@pytest.mark.parametrize("name", setting_names(Settings))
def test_every_setting_has_a_variable(name: str) -> None:
    assert f"GATEWAY_{name.upper()}" in environ_names(name)

    # A name beside it that doesn't exist, so that there is a problem whether "-" fits or not.
    found = problems(**{f"GATEWAY_{name.upper()}": "-", "GATEWAY_?": "-"})
    unknown = [problem.name for problem in found if "no setting has this name" in problem.message]
    assert unknown == ["GATEWAY_?"]


def test_variables_of_a_kubernetes_service_called_gateway_are_passed_over() -> None:
    link = {
        "GATEWAY_SERVICE_HOST": "10.0.0.7",
        "GATEWAY_SERVICE_PORT": "80",
        "GATEWAY_SERVICE_PORT_HTTP": "80",
        "GATEWAY_PORT": "tcp://10.0.0.7:80",
        "GATEWAY_PORT_80_TCP": "tcp://10.0.0.7:80",
        "GATEWAY_PORT_80_TCP_PROTO": "tcp",
        "GATEWAY_PORT_80_TCP_PORT": "80",
        "GATEWAY_PORT_80_TCP_ADDR": "10.0.0.7",
        "GATEWAY_METRICS_PORT": "tcp://10.0.0.8:90",
        "GATEWAY_METRICS_SERVICE_HOST": "10.0.0.8",
    }

    assert load(None, link) == Settings()
    assert load(None, {**link, "PORT": "81"}).port == 81


def test_lists_come_from_variables_too() -> None:
    settings = load(
        None,
        {
            "GATEWAY_ALLOWED_ORIGINS": "https://a.example, https://b.example:443",
            "GATEWAY_TRUSTED_PROXIES": '["10.0.0.0/8"]',
        },
    )

    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8"]


# Files that can't be read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = ", "isn't valid TOML: Invalid value (at end of document)"),
        (b"port = 1\nport = 2", "isn't valid TOML"),
        (b"host = '\xff'", "isn't UTF-8"),
    ],
)
def test_a_broken_file_is_one_problem(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "capegate.toml"
    file.write_bytes(content)

    problem = the_problem(file)

    assert problem.source == f"file {file}"
    assert message in problem.message


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    assert "doesn't exist" in the_problem(tmp_path / "nowhere.toml").message
    assert "can't be read" in the_problem(tmp_path).message


def test_an_unreadable_file_hides_no_problem_of_the_environment(tmp_path: Path) -> None:
    """And makes none of its own: a missing secret may well stand in that file."""
    found = problems(tmp_path / "nowhere.toml", **EXTERNAL, GATEWAY_PORT="x")

    assert [problem.name for problem in found] == ["config", "port"]


# Every problem at once


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        pong_timeout = 30
        log_level = "loud"
        comression = true

        [channel]
        history_size = 5

        [[namespaces]]
        name = "chat"
        presence = "perhaps"
        channel_regex = "("
        """,
    )

    found = problems(file, GATEWAY_PORT="99999", GATEWAY_PROT="1", GATEWAY_INSECURE="true")

    assert {problem.name: problem.source for problem in found} == {
        "GATEWAY_PROT": "environment",
        "port": "environment variable GATEWAY_PORT",
        "insecure": "environment variable GATEWAY_INSECURE",
        "pong_timeout": f"file {file}",
        "log_level": f"file {file}",
        "comression": f"file {file}",
        "channel.history_ttl": f"file {file}",
        "namespaces.chat.presence": f"file {file}",
        "namespaces.chat.channel_regex": f"file {file}",
    }


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("prot = 1", "prot", "did you mean port?"),
        ("PING_INTERVAL = 1", "PING_INTERVAL", "did you mean ping_interval?"),
        ("frobnicate = 1", "frobnicate", "remove it"),
        ("history_size = 1", "history_size", "move it into [channel]"),
        ("[channel]\nport = 1", "channel.port", "above the file's first [table]"),
        ("[channel]\nprecense = true", "channel.precense", "did you mean presence?"),
        (
            '[[namespaces]]\nname = "chat"\nprecense = true',
            "namespaces.chat.precense",
            "did you mean presence?",
        ),
        ("[channel.history]\nsize = 1", "channel.history", "no setting has this name"),
    ],
)
def test_an_unknown_key_is_refused_with_a_guess(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    problem = toml_problem(tmp_path, text)

    assert problem.name == name
    assert message in problem.message


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    problem = the_problem(GATEWAY_TOKEN_HMAC_SECERT=SECRET)

    assert problem.name == "GATEWAY_TOKEN_HMAC_SECERT"
    assert "did you mean GATEWAY_TOKEN_HMAC_SECRET?" in problem.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = -1", "must be at least 0; correct it or leave it out for the default, 8000"),
        ("port = 1.5", "must be a whole number"),
        ("port = true", "must be a number"),
        ("host = ''", "must have at least 1 character(s)"),
        ("host = 1", "must be text"),
        ("compression = 'often'", "must be true or false"),
        ("log_level = 'loud'", "must be 'debug', 'info', 'warning' or 'error'"),
        ("ping_interval = 0", "must be above 0"),
        ("commands_per_second = 'many'", "must be a number"),
        ("commands_per_second = inf", "finite"),
        ("recovery_page = 100000", "must be at most 10000"),
        ("allowed_origins = 3", "must be a list"),
        ("channel = 3", "must be a table"),
        ("namespaces = 3", "must be a list"),
        ("namespaces = ['chat']", "must be a table"),
        ("data_dir = 3", "path"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in toml_problem(tmp_path, text).message


# Checks over several settings


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("pong_timeout = 25", "pong_timeout", "shorter than ping_interval (25 s)"),
        ("ping_interval = '8s'", "pong_timeout", "shorter than ping_interval (8 s)"),
        ("port = 9\ninternal_port = 9", "internal_port", "same as port"),
        ("insecure = true", "insecure", "only possible in development"),
        ("api_insecure = true", "api_insecure", "everyone"),
        ("publish_queue_max_bytes = 2000", "publish_queue_max_bytes", "message_size_max_bytes"),
        ("[channel]\nhistory_size = 1", "channel.history_ttl", "must be above 0"),
        ("[channel]\nhistory_ttl = 1", "channel.history_ttl", "without history_size"),
        ("[channel]\nforce_recovery = true", "channel.force_recovery", "needs history"),
        ("[channel]\nallow_positioning = true", "channel.allow_positioning", "needs history"),
        (
            "[channel]\nforce_push_join_leave = true",
            "channel.force_push_join_leave",
            "without join_leave",
        ),
        (
            "stream_ttl = '1h'\n[channel]\nhistory_size = 1\nhistory_ttl = '2h'",
            "channel",
            "longer than stream_ttl (3600 s)",
        ),
        (
            '[[namespaces]]\nname = "chat"\nhistory_size = 1\nhistory_ttl = "31d"',
            "namespaces",
            "chat: keeps history",
        ),
        ('[[namespaces]]\nname = "chat"\n' * 2, "namespaces", '"chat" more than once'),
        ('[[namespaces]]\nname = "c"', "namespaces.c.name", "must match"),
        ('[[namespaces]]\nname = "a:b"', "namespaces.a:b.name", "must match"),
        ('[[namespaces]]\nname = "ab\\n"', "namespaces.'ab\\n'.name", "must match"),
        ("[[namespaces]]\npresence = true", "namespaces[0].name", "is missing"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    problem = toml_problem(tmp_path, text)

    assert problem.name == name
    assert message in problem.message


def test_a_check_does_not_add_to_the_problem_of_what_it_compares_with(tmp_path: Path) -> None:
    assert toml_problem(tmp_path, "ping_interval = 'x'\npong_timeout = 600").name == "ping_interval"


def test_insecure_modes_are_possible_where_they_hurt_nobody() -> None:
    assert load(None, {"GATEWAY_INSECURE": "1", "GATEWAY_DEVELOPMENT": "1"}).insecure
    assert load(None, {"GATEWAY_API_INSECURE": "1", "GATEWAY_INTERNAL_PORT": "1"}).api_insecure


def test_production_with_a_database_of_its_own_needs_a_way_in(tmp_path: Path) -> None:
    problem = the_problem(**EXTERNAL)
    assert problem.name == "token_hmac_secret"
    assert "is missing" in problem.message

    (tmp_path / "keys.json").write_bytes(key_set(jwk("ES256", "k")))
    for name, value in {
        "TOKEN_HMAC_SECRET": SECRET,
        "TOKEN_RSA_PUBLIC_KEY": public_pem("RS256"),
        "TOKEN_JWKS_FILE": str(tmp_path / "keys.json"),
        "TOKEN_JWKS_URL": "https://id.example/keys",
        "ALLOW_ANONYMOUS": "true",
        "DEVELOPMENT": "true",
    }.items():
        load(None, {**EXTERNAL, f"GATEWAY_{name}": value})


def test_only_a_lone_process_may_make_its_secrets() -> None:
    assert Settings().makes_secrets
    assert load(None, {**EXTERNAL, "GATEWAY_DEVELOPMENT": "1"}).makes_secrets
    assert not load(None, {**EXTERNAL, "GATEWAY_TOKEN_HMAC_SECRET": SECRET}).makes_secrets


# Secrets


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("token_hmac_secret", "hunter2-short", "shorter than 32 bytes"),
        ("token_hmac_previous_secret", "hunter2-short", "shorter than 32 bytes"),
        ("api_key", "hunter2-short", "shorter than 16 characters"),
        ("api_key", "hunter2 with spaces", "characters that an HTTP header"),
        ("api_key", "hunter2-with-\u00fcmlauts", "characters that an HTTP header"),
        ("database_url", "mysql://u:hunter2@db/x", "must begin with postgresql://"),
        ("redis_url", "http://u:hunter2@db", "must begin with redis://"),
    ],
)
def test_a_refused_secret_is_not_repeated(name: str, value: str, message: str) -> None:
    found = problems(**{f"GATEWAY_{name.upper()}": value})

    assert message in found[0].message
    assert "hunter2" not in "\n".join(map(str, found))
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})
    assert "hunter2" not in str(caught.value)


def test_no_repr_holds_a_secret() -> None:
    settings = load(
        None,
        {
            "GATEWAY_TOKEN_HMAC_SECRET": SECRET,
            "GATEWAY_TOKEN_HMAC_PREVIOUS_SECRET": OTHER_SECRET,
            "GATEWAY_TOKEN_HMAC_PREVIOUS_UNTIL": "2030-01-31T12:00:00Z",
            "GATEWAY_API_KEY": "hunter2-hunter2-hunter2",
            "GATEWAY_REDIS_URL": "redis://:hunter2@r",
            **EXTERNAL,
        },
    )

    for text in (repr(settings), str(settings), settings.model_dump_json()):
        for secret in (SECRET, OTHER_SECRET, "hunter2", "someone:pw"):
            assert secret not in text


def test_a_previous_secret_needs_an_end() -> None:
    previous = {"GATEWAY_TOKEN_HMAC_PREVIOUS_SECRET": OTHER_SECRET}

    assert "honoured for ever" in the_problem(**previous).message
    until = the_problem(GATEWAY_TOKEN_HMAC_PREVIOUS_UNTIL="1896091200")
    assert "without token_hmac_previous_secret" in until.message
    same = the_problem(
        GATEWAY_TOKEN_HMAC_SECRET=OTHER_SECRET,
        GATEWAY_TOKEN_HMAC_PREVIOUS_UNTIL="1896091200",
        **previous,
    )
    assert same.name == "token_hmac_previous_secret"
    settings = load(None, {**previous, "GATEWAY_TOKEN_HMAC_PREVIOUS_UNTIL": "2030-01-31T12:00:00Z"})
    assert settings.token_hmac_previous_until == 1896091200.0


def test_a_toml_date_time_is_a_moment(tmp_path: Path) -> None:
    text = f'token_hmac_previous_secret = "{OTHER_SECRET}"\ntoken_hmac_previous_until = '

    settings = load(write(tmp_path, text + "2030-01-31T12:00:00Z"), {})

    assert settings.token_hmac_previous_until == 1896091200.0
    assert "offset" in toml_problem(tmp_path, text + "2030-01-31T12:00:00").message


# Keys


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("token_rsa_public_key", "RS256"),
        ("token_ecdsa_public_key", "ES256"),
        ("token_ecdsa_public_key", "ES512"),
        ("token_eddsa_public_key", "EdDSA"),
    ],
)
def test_pem_keys_are_taken_in_one_line_too(name: str, algorithm: str) -> None:
    pem = public_pem(algorithm)
    variable = f"GATEWAY_{name.upper()}"

    assert getattr(load(None, {variable: pem}), name) == pem.strip()
    assert getattr(load(None, {variable: pem.replace("\n", "\\n")}), name) == pem.strip()


def test_a_key_of_another_kind_is_refused() -> None:
    problem = the_problem(GATEWAY_TOKEN_RSA_PUBLIC_KEY=public_pem("ES256"))

    assert problem.name == "token_rsa_public_key"
    assert "RSA" in problem.message


def test_a_key_set_file_must_hold_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    variable = {"GATEWAY_TOKEN_JWKS_FILE": str(file)}

    assert "can't be read: No such file" in the_problem(**variable).message
    file.write_text("{}")
    assert "isn't a JSON Web Key Set" in the_problem(**variable).message
    file.write_bytes(key_set(jwk("RS256", "k")))
    assert load(None, variable).token_jwks_file == file
    both = the_problem(**variable, GATEWAY_TOKEN_JWKS_URL="https://id.example/keys")
    assert "together with token_jwks_file" in both.message


def test_a_private_key_is_refused_without_being_repeated() -> None:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = private_key("RS256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    problem = the_problem(GATEWAY_TOKEN_RSA_PUBLIC_KEY=pem.decode())

    assert "is a private key" in problem.message
    assert pem.decode().splitlines()[1] not in str(problem)


# Channels


def test_channel_options_have_the_names_and_defaults_of_the_protocol() -> None:
    assert tuple(ChannelSettings.model_fields) == OPTION_NAMES
    assert ChannelSettings().options() == ChannelOptions()
    for option in fields(ChannelOptions):
        assert ChannelSettings.model_fields[option.name].default == option.default


def test_namespaces_are_found_by_their_channels(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [channel]
        presence = true

        [[namespaces]]
        name = "chat"
        history_size = 10
        history_ttl = "300s"
        force_recovery = true

        [[namespaces]]
        name = "a.b_c-D"
        """,
    )

    namespaces = load(file, {}).namespaces()

    assert namespaces.options("news") == ChannelOptions(presence=True)
    assert namespaces.options("chat:lobby") == ChannelOptions(
        history_size=10, history_ttl=300.0, force_recovery=True
    )
    assert namespaces.options("a.b_c-D:x") == ChannelOptions()
    assert namespaces.options("other:x") is None


def test_tables_can_come_from_variables() -> None:
    namespaces = load(
        None,
        {
            "GATEWAY_CHANNEL": '{"presence": true}',
            "GATEWAY_NAMESPACES": json.dumps([{"name": "chat", "join_leave": True}]),
        },
    ).namespaces()

    assert namespaces.options("news") == ChannelOptions(presence=True)
    assert namespaces.options("chat:lobby") == ChannelOptions(join_leave=True)
    assert "JSON" in the_problem(GATEWAY_CHANNEL="presence").message


def test_development_opens_what_is_not_configured(tmp_path: Path) -> None:
    development = {"GATEWAY_DEVELOPMENT": "1"}
    file = write(tmp_path, '[channel]\n[[namespaces]]\nname = "chat"\n')

    opened = load(None, development).namespaces()
    configured = load(file, development).namespaces()

    for channel in ("chat:lobby", "lobby"):
        options = opened.options(channel)
        assert options is not None
        assert (options.history_size, options.history_ttl) == (1000, 604800.0)
        assert options.force_recovery
        assert options.presence
        assert options.allow_subscribe_for_client
        assert options.allow_publish_for_subscriber
        assert not options.allow_subscribe_for_anonymous
        assert configured.options(channel) == ChannelOptions()
    assert Settings().namespaces().options("chat:lobby") is None


def test_notes_tell_what_is_probably_not_wanted() -> None:
    assert Settings().notes() == []
    unwanted = {
        "GATEWAY_TOKEN_JWKS_URL": "http://id.example/keys",
        "GATEWAY_ALLOWED_ORIGINS": "*",
        **EXTERNAL,
    }
    subjects = [note.split()[0] for note in load(None, unwanted).notes()]
    assert subjects == ["token_jwks_url", "allowed_origins", "api_key"]
    exposed = load(None, {"GATEWAY_DEVELOPMENT": "1", "GATEWAY_HOST": "0.0.0.0"})
    assert [note.split()[0] for note in exposed.notes()] == ["development"]


# Whatever stands there


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
OPTIONS = st.dictionaries(st.sampled_from([*OPTION_NAMES, "name", "x"]), VALUES, max_size=4)


@given(
    values=st.dictionaries(st.sampled_from([*setting_names(Settings), "x"]), VALUES, max_size=4),
    channel=OPTIONS,
    namespaces=st.lists(OPTIONS, max_size=3),
)
def test_any_value_gives_settings_or_problems(
    values: dict[str, Any], channel: dict[str, Any], namespaces: list[dict[str, Any]]
) -> None:
    with suppress(SettingsError):
        load(None, {}, {"channel": channel, "namespaces": namespaces, **values})


@given(environ=st.dictionaries(st.sampled_from(setting_names(Settings)), st.text(), max_size=4))
def test_any_variable_gives_settings_or_problems(environ: dict[str, str]) -> None:
    with suppress(SettingsError):
        load(None, {f"GATEWAY_{name.upper()}": value for name, value in environ.items()})


def test_settings_do_not_change() -> None:
    settings = Settings()

    with pytest.raises(ValidationError):
        settings.port = 1
    with pytest.raises(ValidationError):
        NamespaceSettings(name="chat").presence = True
