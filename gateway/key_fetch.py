"""Fetches a key set over HTTP. On its own, for an HTTP client takes a while to import."""

import aiohttp

FETCH_TIMEOUT = 5.0
"""Seconds for the whole answer. A key set comes within one, or something is wrong."""

FETCH_BYTES_MAX = 262_144
"""Room for some hundred keys; providers publish two or three."""

_TIMEOUT = aiohttp.ClientTimeout(total=FETCH_TIMEOUT)


async def fetch(url: str) -> bytes:
    """The body behind the URL. Raises OSError with what went wrong, TimeoutError included.

    Redirects aren't followed, since one could lead from https to anywhere.
    """
    try:
        async with (
            # A key set is fetched so seldom that a kept connection would only go stale.
            aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session,
            session.get(
                url, allow_redirects=False, headers={"Accept-Encoding": "identity"}
            ) as response,
        ):
            if response.status != 200:
                raise OSError(f"it answered with status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > FETCH_BYTES_MAX:
                    raise OSError(f"its answer is longer than {FETCH_BYTES_MAX} bytes")
    except TimeoutError:
        raise TimeoutError(f"it took longer than {FETCH_TIMEOUT:g} s to answer") from None
    except aiohttp.ClientError as error:
        raise OSError(f"it can't be reached: {error}") from error
    return bytes(body)
