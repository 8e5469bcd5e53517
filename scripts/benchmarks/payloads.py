"""Application data of the benchmark: JSON of an exact size, one kind with a time stamp."""

_FILL = "the quick brown fox jumps over the lazy dog "
_STAMP = b'{"at":"'
_STAMP_DIGITS = 20


def plain(size_bytes: int) -> bytes:
    """A JSON string of exactly `size_bytes`, quotes included."""
    text = (_FILL * (size_bytes // len(_FILL) + 1))[: size_bytes - 2]
    return f'"{text}"'.encode()


def stamped(size_bytes: int, now_ns: int) -> bytes:
    """A JSON object of exactly `size_bytes` that says when it was sent."""
    head = _STAMP + b"%0*d" % (_STAMP_DIGITS, now_ns) + b'","text":'
    return head + plain(size_bytes - len(head) - 1) + b"}"


def sent_at_ns(payload: bytes) -> list[int]:
    """The times of sending of every stamped publication in a payload."""
    times = []
    start = payload.find(_STAMP)
    while start >= 0:
        digits = start + len(_STAMP)
        times.append(int(payload[digits : digits + _STAMP_DIGITS]))
        start = payload.find(_STAMP, digits)
    return times
