"""The server API, used by `cent`: Centrifugo's own client for Python, which nobody here wrote."""

import pytest
from cent import Client, PublishRequest

from tests.integration.conftest import StartServer
from tests.support.server import API_KEY, ServerProcess


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server()


def test_a_publication_with_history_has_a_position(server: ServerProcess, room: str) -> None:
    with Client(f"{server.http_url}/api", API_KEY) as cent:
        first = cent.publish(PublishRequest(channel=room, data={"text": "hello"}))
        second = cent.publish(PublishRequest(channel=room, data="again"))

    assert (first.offset, second.offset) == (1, 2)
    assert first.epoch == second.epoch != ""
