"""Token buckets in numbers, and JSON that other parsers could not take."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol.limits import (
    JSON_DEPTH_MAX,
    JSON_DIGITS_MAX,
    TokenBucket,
    is_unfit_for_others,
)
from tests.support.fuzzing import REPEATABLE


def taken(bucket: TokenBucket, now: float, tries: int, rate: float, burst: float) -> int:
    return sum(bucket.take(now, rate, burst) for _ in range(tries))


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    bucket = TokenBucket(10.0, now=100.0)

    assert taken(bucket, 100.0, 20, rate=5.0, burst=10.0) == 10


def test_tokens_come_back_at_the_rate() -> None:
    bucket = TokenBucket(10.0, now=100.0)
    taken(bucket, 100.0, 10, rate=5.0, burst=10.0)

    assert taken(bucket, 100.1, 5, rate=5.0, burst=10.0) == 0
    assert taken(bucket, 100.2, 5, rate=5.0, burst=10.0) == 1
    assert taken(bucket, 101.2, 20, rate=5.0, burst=10.0) == 5


def test_a_long_rest_gives_a_burst_and_no_more() -> None:
    bucket = TokenBucket(10.0, now=100.0)
    taken(bucket, 100.0, 10, rate=5.0, burst=10.0)

    assert taken(bucket, 1_000_000.0, 50, rate=5.0, burst=10.0) == 10


def test_a_clock_that_went_backwards_gives_nothing() -> None:
    bucket = TokenBucket(2.0, now=100.0)
    taken(bucket, 100.0, 2, rate=1.0, burst=2.0)

    assert taken(bucket, 50.0, 5, rate=1.0, burst=2.0) == 0
    assert taken(bucket, 100.5, 5, rate=1.0, burst=2.0) == 0
    assert taken(bucket, 101.0, 5, rate=1.0, burst=2.0) == 1


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.5, 50), st.integers(1, 20))
@settings(REPEATABLE)
def test_no_more_than_a_burst_and_the_rate_is_ever_taken(
    pauses: list[float], rate: float, burst: int
) -> None:
    bucket = TokenBucket(burst, now=0.0)
    now = 0.0
    count = 0
    for pause in pauses:
        now += pause
        count += bucket.take(now, rate, burst)

        assert count <= burst + rate * now + 1e-6


# --- payloads ---------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_nesting_is_measured_where_it_is_deepest() -> None:
    assert not is_unfit_for_others(nested(JSON_DEPTH_MAX))
    assert is_unfit_for_others(nested(JSON_DEPTH_MAX + 1))
    assert is_unfit_for_others(b'{"a":' * 129 + b"1" + b"}" * 129)
    assert is_unfit_for_others(b"[1," + nested(JSON_DEPTH_MAX) + b"]")
    assert is_unfit_for_others(b"[[],[]," + nested(JSON_DEPTH_MAX) + b",1,2]")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert not is_unfit_for_others(b"[" + b"[]," * 5000 + b"{}]")
    assert not is_unfit_for_others(b"[" + b'{"a":[1]},' * 5000 + b"{}]")


def test_brackets_in_strings_are_not_depth() -> None:
    brackets = "[" * 500
    for text in (brackets, f'{brackets}"', f"{brackets}\\", f'\\"{brackets}\\\\"{brackets}'):
        assert not is_unfit_for_others(json.dumps(text).encode())
        assert not is_unfit_for_others(json.dumps({text: [text, text]}).encode())
        assert is_unfit_for_others(b"[" * 129 + json.dumps(text).encode() + b"]" * 129)


def test_an_integer_may_have_as_many_digits_as_python_takes() -> None:
    fits, too_long = b"1" * JSON_DIGITS_MAX, b"1" * (JSON_DIGITS_MAX + 1)
    assert json.loads(fits)
    with pytest.raises(ValueError, match="digits"):
        json.loads(too_long)

    assert not is_unfit_for_others(fits)
    assert not is_unfit_for_others(b"[" + b",".join([fits] * 10) + b"]")
    # Wherever it stands: it is looked for at every 4,301st place first.
    for start in (*range(40), *range(4280, 4320), *range(8580, 8620)):
        assert is_unfit_for_others(b'["' + b"a" * start + b'",-' + too_long + b"]")


def test_digits_in_strings_are_no_integer() -> None:
    digits = "1" * 20_000

    assert not is_unfit_for_others(json.dumps(digits).encode())
    assert not is_unfit_for_others(json.dumps([f'"{digits}', {digits: f"{digits}\\"}]).encode())


def too_much_for(text: bytes) -> bool:
    """The same, looked at a byte at a time."""
    depth = deepest = digits = longest = 0
    quoted = escaped = False
    for byte in text.decode("latin-1"):
        if quoted:
            if escaped:
                escaped = False
            elif byte == "\\":
                escaped = True
            elif byte == '"':
                quoted = False
            continue
        quoted = byte == '"'
        depth += (byte in "[{") - (byte in "]}")
        deepest = max(deepest, depth)
        digits = digits + 1 if byte.isdigit() else 0
        longest = max(longest, digits)
    return deepest > JSON_DEPTH_MAX or longest > JSON_DIGITS_MAX


values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('[]{}"\\1é'), max_size=20)
    | st.sampled_from(["[" * 300, '"\\' * 70]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('[{"\\'), max_size=5), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(values, st.integers(110, 140), st.sampled_from([0, 4299, 4300, 4301]))
@example(["\\"], 129, 0)
@settings(REPEATABLE, max_examples=200)
def test_it_agrees_with_a_look_at_each_byte(value: object, depth: int, digits: int) -> None:
    inner = json.dumps([value, "["], ensure_ascii=False).encode()
    if digits:
        inner = b"[" + inner + b"," + b"7" * digits + b"]"
    text = b"[" * depth + inner + b"]" * depth

    assert is_unfit_for_others(inner) == too_much_for(inner)
    assert is_unfit_for_others(text) == too_much_for(text)


def test_rows_of_digits_that_are_just_short_enough_take_no_time() -> None:
    """A search that began anew inside each row would need minutes for these."""
    text = b"[" + b",".join([b"1" * JSON_DIGITS_MAX] * 500) + b"]"

    assert not is_unfit_for_others(text)
