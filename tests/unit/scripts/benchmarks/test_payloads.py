import json

import pytest

from scripts.benchmarks import payloads


@pytest.mark.parametrize("size", [2, 16, 128, 1_000])
def test_plain_data_is_json_of_the_exact_size(size: int) -> None:
    data = payloads.plain(size)

    assert len(data) == size
    assert isinstance(json.loads(data), str)


def test_stamped_data_is_json_of_the_exact_size_whatever_the_time() -> None:
    for now_ns in (0, 5, 12_345_678_901_234):
        data = payloads.stamped(128, now_ns)

        assert len(data) == 128
        assert int(json.loads(data)["at"]) == now_ns


def test_every_stamp_of_a_payload_is_found() -> None:
    payload = payloads.stamped(128, 1) + b"\n" + payloads.stamped(64, 22)

    assert payloads.sent_at_ns(payload) == [1, 22]


def test_a_payload_without_stamps_has_no_times() -> None:
    assert payloads.sent_at_ns(payloads.plain(128)) == []
