"""Requests in, answers out, as JSON: what is wrong with a body is said by field and limit."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from web.errors import ApiError, bad_input
from web.site import SITE

B = TypeVar("B", bound=msgspec.Struct)

BODY: Final = web.RequestKey("body", bytes)
AT: Final = re.compile(r" - at `\$\.?(?P<where>.*)`$")
MISSING: Final = re.compile(r"Object missing required field `(?P<field>.*?)`")
BODY_SECONDS: Final = 30.0
MAX_METADATA_KEYS: Final = 16
MAX_METADATA_BYTES: Final = 8192
MAX_METADATA_DEPTH: Final = 32


async def take(request: web.Request, kind: type[B]) -> B:
    """Return the request's body as this struct. No body at all counts as ``{}``. Raises `ApiError`: 400, 413, 415."""
    return decoded(await raw(request), kind)


async def raw(request: web.Request) -> bytes:
    """Return the request's body, however often it is asked for.

    Raises `ApiError`: 413, or 415 for what does not say that it is JSON.
    """
    if BODY in request:
        return request[BODY]
    body = await read_body(request, request.app[SITE].chat.settings.max_body_bytes)
    if body and not is_json(request.content_type):
        message = f"The body must be JSON, with Content-Type: application/json, not {request.content_type[:100]!r}."
        raise ApiError(415, "unsupported_media_type", message)
    request[BODY] = body
    return body


async def read_body(request: web.Request, limit: int, setting: str = "HEADRACE_MAX_BODY_BYTES") -> bytes:
    """Return the request's body. Raises `ApiError`: 400, 408, and 413 beyond the ``limit`` of a ``setting``."""
    if (request.content_length or 0) > limit:
        raise too_large(limit, setting)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise too_large(limit, setting)
    except TimeoutError as error:
        message = f"The body did not come within {BODY_SECONDS:.0f} s."
        raise ApiError(408, "body_too_slow", message, headers={"Connection": "close"}) from error
    except (HttpProcessingError, web.RequestPayloadError) as error:
        # Broken chunks, or not compressed as it says.
        raise bad_input(None, f"The body cannot be read: {error}.", "invalid_body") from error
    return bytes(body)


async def go_on(request: web.Request) -> None:
    """Tell a client that waits for it to send its body. Other expectations may be passed over (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def is_json(content_type: str) -> bool:
    """Return whether a body says that it is JSON."""
    return content_type == "application/json" or content_type.endswith("+json")


def too_large(limit: int, setting: str = "HEADRACE_MAX_BODY_BYTES") -> ApiError:
    """Return a 413. The rest of the body is not read, so the connection closes with the answer."""
    message = f"The body is larger than {limit} bytes ({setting})."
    return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


def decoded(body: bytes, kind: type[B]) -> B:
    """Return a body as this struct; raises `ApiError` with the field at fault."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_input(None, f"The body is not JSON that can be read: {error}.", "invalid_json") from error


def _explained(message: str) -> ApiError:
    at = AT.search(message)
    where = at["where"] if at else ""
    what = message[: at.start()] if at else message
    missing = MISSING.search(what)
    if missing:
        field = f"{where}.{missing['field']}" if where else missing["field"]
        return bad_input(field, f"{field} is required.", "missing_required_parameter")
    what = what.replace("`str`", "a string").replace("`int`", "an integer").replace("`float`", "a number")
    what = what.replace("`bool`", "true or false").replace("`", "")
    return bad_input(where or None, f"{where or 'The body'}: {what[0].lower()}{what[1:]}.")


def checked_metadata(metadata: dict[str, Any] | None) -> dict[str, Any]:
    """Return metadata that is small enough to travel with every record; raises `ApiError`."""
    metadata = metadata or {}
    if len(metadata) > MAX_METADATA_KEYS:
        raise bad_input("metadata", f"metadata may have at most {MAX_METADATA_KEYS} keys.", "metadata_too_large")
    if _is_deeper(metadata, MAX_METADATA_DEPTH):
        # First: what encodes or copies JSON calls itself for every level, and would not come to its end.
        message = f"metadata may be nested at most {MAX_METADATA_DEPTH} deep."
        raise bad_input("metadata", message, "metadata_too_deep")
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        message = f"metadata may take at most {MAX_METADATA_BYTES} bytes as JSON."
        raise bad_input("metadata", message, "metadata_too_large")
    return metadata


def _is_deeper(value: Any, depth: int) -> bool:
    """Return whether JSON has more lists and objects within one another than this."""
    level = [value]
    for _ in range(depth):
        level = [each for outer in level for each in _within(outer)]
    return any(isinstance(each, dict | list) for each in level)


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def give(answer: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer as JSON."""
    return web.Response(
        body=msgspec.json.encode(answer), status=status, headers=headers, content_type="application/json"
    )
