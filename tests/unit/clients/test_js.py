"""The JavaScript client (clients/js): its own tests on Node, its types, and its package."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import tools

CLIENT = Path(__file__).parents[3] / "clients" / "js"
TESTS = CLIENT / "test"
TYPESCRIPT = CLIENT / "node_modules" / "typescript" / "bin" / "tsc"
# What a published package is made from.
SOURCES = ("LICENSE", "README.md", "package.json", "src", "tsconfig.json", "tsconfig.types.json")

# All that is public, used by somebody who checks strictly, and the declarations of libraries too.
CONSUMER = """
import { Centrifuge } from "centrifuge";
import { BACKOFF, ResumableWebSocket, Status } from "capegate-client";
import type { LineState, Options, Quality } from "capegate-client";
import { useGateway, type GatewayState } from "capegate-client/react";

const options: Options = { backoff: { ...BACKOFF, max: 10_000 }, WebSocket };
const Socket = ResumableWebSocket.with(options);
const client = new Centrifuge("wss://chat.example/", Socket.sdkOptions());
const plain = new Centrifuge("wss://chat.example/", { websocket: ResumableWebSocket });
const status: Status = Socket.status;
const state: LineState = status.state;
const quality: Quality | null = status.quality;
const socket: WebSocket["send"] = (data) => new Socket("wss://chat.example/").send(data as string);

export function Room() {
  const gateway = useGateway(client, Socket);
  const shown: GatewayState = gateway.state;
  const end: () => void = gateway.subscribe("room", { publication: ({ data }) => data });
  return [shown, end, gateway.retryAt ?? 0, plain, state, quality, socket];
}
"""
CONSUMER_CONFIG = """
{
  "compilerOptions": {
    "target": "ES2022",
    "module": "NodeNext",
    "lib": ["ES2022", "DOM", "DOM.Iterable"],
    "types": [],
    "strict": true,
    "skipDefaultLibCheck": true,
    "noEmit": true
  },
  "files": ["consumer.mts"]
}
"""


def run(*command: str | Path, folder: Path = CLIENT) -> str:
    """What a command said; its failure is the test's."""
    # Where Node came as a wheel, what npm starts finds it as well.
    path = f"{Path(tools.node()).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.test.js")))
def test_the_client_does_what_its_tests_say(name: str) -> None:
    said = run(tools.node(), "--test", "--test-reporter=spec", TESTS / name)
    assert "tests 0" not in said


@pytest.mark.parametrize("config", ["tsconfig.json", "tsconfig.test.json"])
def test_the_types_of_the_client_are_strict(config: str) -> None:
    """`tsconfig.json` knows only browsers, where the client must run without Node."""
    run(tools.node(), TYPESCRIPT, "--project", config)


def test_the_package_can_be_imported_and_its_types_used(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (CLIENT / name).is_dir() else shutil.copy
        copy(CLIENT / name, source / name)
    (source / "node_modules").symlink_to(CLIENT / "node_modules")
    run(tools.npm(), "pack", "--offline", "--loglevel=error", folder=source)

    modules = tmp_path / "consumer" / "node_modules"
    package = modules / "capegate-client"
    package.mkdir(parents=True)
    (archive,) = source.glob("*.tgz")
    shutil.unpack_archive(archive, package, "gztar")
    (package / "package").rename(modules / "unpacked")
    package.rmdir()
    (modules / "unpacked").rename(package)
    assert {path.name for path in package.iterdir()} == {
        *("LICENSE", "README.md", "package.json", "src", "types")
    }
    for name in ("centrifuge", "events", "protobufjs", "long", "@types", "csstype", "react"):
        (modules / name).symlink_to(CLIENT / "node_modules" / name)
    consumer = modules.parent
    (consumer / "consumer.mts").write_text(CONSUMER)
    (consumer / "tsconfig.json").write_text(CONSUMER_CONFIG)
    run(tools.node(), TYPESCRIPT, folder=consumer)
    run(
        tools.node(),
        "--input-type=module",
        "--eval",
        'await import("capegate-client"); await import("capegate-client/react")',
        folder=consumer,
    )
