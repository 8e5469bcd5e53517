"""Token buckets: how much a client may do in a stretch of time."""


class TokenBucket:
    """Allows `rate` things a second on average and `burst` at once. Time is an argument."""

    __slots__ = ("_tokens", "_updated")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self._updated = now

    def take(self, now: float, rate: float, burst: float) -> bool:
        """Take one token if there is one. A clock that went backwards adds nothing."""
        tokens = self._tokens
        if now > self._updated:
            tokens = min(burst, tokens + (now - self._updated) * rate)
            self._updated = now
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


JSON_DEPTH_MAX = 128


def nests_too_deep(text: bytes, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether valid JSON nests deeper than `depth_max`.

    Not every subscriber's parser is as patient as ours: Python's own gives up at about a thousand
    levels, and one publisher must not break other people's clients.
    """
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return False
    depth = 0
    quoted = escaped = False
    for byte in text:
        if quoted:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte in b"[{":
            depth += 1
            if depth > depth_max:
                return True
        elif byte in b"]}":
            depth -= 1
    return False
