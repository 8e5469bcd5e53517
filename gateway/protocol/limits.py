"""How much a client may do in a stretch of time, and what it may ask others to read."""

import re
from array import array
from itertools import accumulate
from typing import Final


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


JSON_DEPTH_MAX: Final = 128
# Python refuses to parse longer integers (sys.int_info.default_max_str_digits).
JSON_DIGITS_MAX: Final = 4300

_OPENING: Final = b"[{"
_CLOSING: Final = b"]}"
# Brackets as signed bytes, so that adding them up in order gives the depth.
_STEPS: Final = bytes(1 if c in _OPENING else 0xFF if c in _CLOSING else 0 for c in range(256))
_NO_BRACKETS: Final = bytes(c for c in range(256) if c not in _OPENING + _CLOSING)
_DIGIT: Final = re.compile(rb"[0-9]")
# Begins where a row of digits begins, so that looking for it takes linear time.
_LONG_NUMBER: Final = re.compile(rb"(?<![0-9])[0-9]{%d}" % (JSON_DIGITS_MAX + 1))


def is_unfit_for_others(text: bytes) -> bool:
    """Whether valid JSON would break parsers that are less patient than ours.

    Python's own gives up at about a thousand levels of nesting and at integers of more than 4,300
    digits, and one publisher must not break other people's clients.
    """
    may_nest = text.count(b"[") + text.count(b"{") > JSON_DEPTH_MAX
    # A longer row of digits than allowed covers one of these places; most texts have none there.
    sampled = text[JSON_DIGITS_MAX :: JSON_DIGITS_MAX + 1]
    may_be_long = bool(sampled and _DIGIT.search(sampled) and _LONG_NUMBER.search(text))
    if not (may_nest or may_be_long):
        return False
    # A quote that isn't escaped begins or ends a string, so every other part stands outside of
    # strings. Four times as fast as looking at each byte: 64 KB take 1 ms.
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    if may_be_long and any(map(_LONG_NUMBER.search, parts)):
        return True
    steps = array("b", b"".join(parts).translate(_STEPS, _NO_BRACKETS))
    return max(accumulate(steps), default=0) > JSON_DEPTH_MAX
