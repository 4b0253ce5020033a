"""Every answer that is not a success: one shape (OpenAI's error object), a stable code, and what to do about it."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from domain.errors import Rejected, Retriable
from web.tracing import request_id_of

log = structlog.get_logger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
NOT_READY = "not_ready"  # told to probes, every few seconds; the worker's own log says more
RETRY_SECONDS = 1.0
CLIENT_CLOSED_REQUEST = 499  # nginx's number, for logs and metrics: nobody receives it


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong. ``param`` names the field at fault; ``code`` is stable; ``request_id`` finds it in our logs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str | None = None


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that cannot be served, with what its client is told."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def bad_input(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return a 400: which field, and which limit."""
    return ApiError(400, code, message, param=param)


def not_found(what: str, its_id: str) -> ApiError:
    """Return a 404, which is the same whether the object is another user's or does not exist."""
    return ApiError(404, f"{what}_not_found", f"There is no {what} {its_id[:64]!r}, or it is not yours.")


def unavailable(message: str, *, code: str = "temporarily_unavailable", retry_after: float | None = None) -> ApiError:
    """Return a 503 that says when to come back."""
    seconds = str(max(1, ceil(retry_after or RETRY_SECONDS)))
    return ApiError(503, code, message, headers={"Retry-After": seconds})


def seen_from_outside(error: Exception) -> ApiError:
    """Return what a client is told of any exception."""
    match error:
        case ApiError():
            return error
        case Retriable():
            return unavailable(f"{error}. Try again.", code=error.code, retry_after=error.retry_after)
        case Rejected():
            return ApiError(400, error.code, str(error))
        case web.HTTPException():
            return _of_aiohttp(error)
        case _:
            return ApiError(500, "internal_error", "Something went wrong on our side. Report the request id.")


def _of_aiohttp(error: web.HTTPException) -> ApiError:
    kept = {name: error.headers[name] for name in ("Allow", "Retry-After") if name in error.headers}
    match error.status:
        case 404:
            message = "There is no such route. GET /openapi.json lists them."
        case 405:
            message = f"This route takes {kept.get('Allow', 'other methods')} only."
        case _:
            message = f"{HTTPStatus(error.status).phrase}."
    return ApiError(error.status, CODES.get(error.status, "bad_request"), message, headers=kept)


def error_object(error: ApiError, request: web.Request) -> bytes:
    """Return the error object as JSON."""
    detail = ErrorDetail(
        message=error.message,
        type=TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error"),
        param=error.param,
        code=error.code,
        request_id=request_id_of(request),
    )
    return msgspec.json.encode(ErrorObject(error=detail))


def told(request: web.Request, error: Exception) -> ApiError:
    """Return what the client is told of an exception, and log it if the fault is ours."""
    outside = seen_from_outside(error)
    if outside.status == 500:
        log.error("request failed", method=request.method, path=request.path, exc_info=error)
    elif outside.status > 500 and outside.code != NOT_READY:
        log.warning("request refused", method=request.method, path=request.path, code=outside.code, reason=str(error))
    return outside


def has_left(request: web.Request) -> bool:
    """Return whether a client's connection is closed."""
    return request.transport is None or request.transport.is_closing()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into the error object."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        outside = told(request, error)
    except Exception as error:  # noqa: BLE001 - here every error gets its answer
        if isinstance(error, ConnectionError) and has_left(request):
            return web.Response(status=CLIENT_CLOSED_REQUEST)  # nobody is there to be told
        outside = told(request, error)
    response = web.Response(
        status=outside.status,
        body=error_object(outside, request),
        headers=outside.headers,
        content_type="application/json",
    )
    if outside.headers.get("Connection") == "close":
        response.force_close()
    return response
