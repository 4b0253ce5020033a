"""The contract for programs, made from the table of routes and the structs that the handlers themselves decode with."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from web.errors import ErrorObject

Document = dict[str, Any]
REF: Final = "#/components/schemas/{name}"
EVENT_STREAM: Final = "text/event-stream"

OPENAPI: Final = web.AppKey("openapi", bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter or header of a route."""

    name: str
    does: str
    where: Literal["query", "header"] = "query"
    schema: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One line of the contract, and the handler that keeps it. ``more`` is for those who read on.

    ``takes`` and ``gives`` are the bodies; ``streams`` says that the answer is, or at the client's wish can be,
    an event stream; ``is_open`` that no key is needed.
    """

    method: str
    path: str
    handler: Handler
    does: str
    group: str
    more: str = ""
    takes: type | None = None
    gives: type | None = None
    gives_text: str | None = None
    status: int = 200
    streams: bool = False
    is_open: bool = False
    parameters: Sequence[Parameter] = ()


async def openapi(request: web.Request) -> web.StreamResponse:
    """Return the contract as an OpenAPI document."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


def document(routes: Sequence[Route]) -> Document:
    """Return the OpenAPI 3.1 document of these routes."""
    bodies = {body for route in routes for body in (route.takes, route.gives) if body is not None}
    ordered = [*sorted(bodies, key=lambda body: body.__name__), ErrorObject]
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REF)
    refs = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, Document] = {}
    for route in routes:
        paths.setdefault(_path(route.path), {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": _version(),
            "description": "Chat whose questions and answers travel through Kafka. Every answer that is not a success"
            " has the error object; every answer has `X-Request-Id`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(route.group for route in routes)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Error": {
                    "description": "What went wrong, and what to do.",
                    "content": {"application/json": {"schema": refs[ErrorObject]}},
                }
            },
        },
    }


def _operation(route: Route, refs: dict[type, Document]) -> Document:
    name = getattr(route.handler, "__name__", "")
    operation: Document = {
        "operationId": f"{getattr(route.handler, '__module__', '').removeprefix('web.')}_{name}",
        "summary": route.does,
        "tags": [route.group],
        "responses": {str(route.status): _response(route, refs), "default": {"$ref": "#/components/responses/Error"}},
    }
    parameters = [*_path_parameters(route.path), *(_parameter(parameter) for parameter in route.parameters)]
    if route.more:
        operation["description"] = route.more
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": refs[route.takes]}}}
    if route.is_open:
        operation["security"] = []
    return operation


def _response(route: Route, refs: dict[type, Document]) -> Document:
    content: Document = {}
    if route.gives is not None:
        content["application/json"] = {"schema": refs[route.gives]}
    if route.gives_text is not None:
        content[route.gives_text] = {"schema": {"type": "string"}}
    if route.streams:
        content[EVENT_STREAM] = {"schema": {"type": "string"}}
    response: Document = {"description": HTTPStatus(route.status).phrase}
    return response | ({"content": content} if content else {})


def _path(path: str) -> str:
    """Return a route's path without aiohttp's patterns: ``/a/{b:.+}`` is ``/a/{b}``."""
    return "/".join(f"{{{part[1:-1].split(':')[0]}}}" if part.startswith("{") else part for part in path.split("/"))


def _path_parameters(path: str) -> list[Document]:
    names = [part[1:-1].split(":")[0] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _parameter(parameter: Parameter) -> Document:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.does,
        "schema": parameter.schema,
    }


def _version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "0"
