"""The example of docs/python-client.md, run as it stands."""

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.integration.conftest import StartServer
from tests.support.server import mint
from tests.support.waiting import DEADLINE

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "python-client.md"


async def test_the_example_does_what_the_page_says(start_server: StartServer) -> None:
    server = start_server()
    text = await asyncio.to_thread(PAGE.read_text, encoding="utf-8")
    example, output = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[:2]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", example),
        cwd=ROOT,
        env=os.environ | {"GATEWAY_URL": server.ws_url, "GATEWAY_TOKEN": mint("alice")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        stdout, stderr = await process.communicate()

    assert stderr.decode() == ""
    assert stdout.decode() == output
