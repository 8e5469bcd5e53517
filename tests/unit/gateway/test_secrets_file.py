"""Secrets that weren't configured are made once, privately, and shared by everyone after."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.secrets_file import complete, missing_secrets, secret_path
from gateway.settings import Settings, SettingsError, load
from tests.support.tokens import SECRET, public_pem

NAMES = ("token_hmac_secret", "api_key")


def settings_in(tmp_path: Path, **values: object) -> Settings:
    return load(None, {}, {"data_dir": str(tmp_path / "data"), **values})


def test_missing_secrets_are_made_once(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert missing_secrets(settings) == NAMES

    first, second = complete(settings), complete(settings)

    assert first == second
    assert missing_secrets(first) == ()
    assert complete(first) is first
    assert first.token_hmac_secret is not None
    assert first.api_key is not None
    assert len(first.token_hmac_secret.get_secret_value()) == 64
    assert first.token_hmac_secret != first.api_key
    assert first.source("api_key") == f"file {secret_path(settings, 'api_key')}"
    assert first.source("data_dir") == "command line --data-dir"


def test_only_their_owner_can_read_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        settings = complete(settings_in(tmp_path))
    finally:
        os.umask(before)

    for name in NAMES:
        path = secret_path(settings, name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.stat().st_nlink == 1
    assert {path.name for path in secret_path(settings, "x").parent.iterdir()} == set(NAMES)


def test_what_is_configured_is_not_made(tmp_path: Path) -> None:
    configured = settings_in(
        tmp_path, token_hmac_secret=SECRET, api_key=SECRET[:16].replace(" ", "_")
    )
    assert complete(configured) is configured
    keyed = complete(settings_in(tmp_path, token_eddsa_public_key=public_pem("EdDSA")))
    assert keyed.token_hmac_secret is None
    assert keyed.api_key is not None
    assert not secret_path(keyed, "token_hmac_secret").exists()


def test_nothing_is_made_for_a_process_among_others(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, database_url="postgresql://db/x", token_hmac_secret=SECRET)

    assert complete(settings) is settings
    assert not (tmp_path / "data").exists()


def test_looking_does_not_make_them(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)

    assert complete(settings, make=False) is settings
    assert not (tmp_path / "data").exists()
    made = complete(settings)
    assert complete(settings, make=False) == made


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    program = (
        "import sys; from gateway.secrets_file import complete; from gateway.settings import load;"
        "settings = load(None, {'GATEWAY_DATA_DIR': sys.argv[1]}); print('ready', flush=True);"
        "sys.stdin.readline(); settings = complete(settings);"
        "print(settings.token_hmac_secret.get_secret_value(), settings.api_key.get_secret_value())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "data")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in processes}

    assert len(answers) == 1
    assert len(answers.pop().split()) == 2


def test_threads_that_start_together_agree(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    barrier = threading.Barrier(8)
    made: list[Settings] = []

    def make() -> None:
        barrier.wait()
        made.append(complete(settings))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 8
    assert all(one == made[0] for one in made)


@pytest.mark.parametrize("content", ["", "\n", "too short"])
def test_a_damaged_secret_is_reported_and_not_replaced(tmp_path: Path, content: str) -> None:
    settings = settings_in(tmp_path)
    path = secret_path(settings, "api_key")
    path.parent.mkdir(parents=True)
    path.write_text(content)

    with pytest.raises(SettingsError, match=r"api_key .*is too short; ") as caught:
        complete(settings)

    assert path.read_text() == content
    assert "too short\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used_is_one_clear_problem(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")

    with pytest.raises(SettingsError, match=r"^token_hmac_secret \(file .*can't be kept: "):
        complete(settings_in(tmp_path))
