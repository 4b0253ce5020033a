"""The page, the contract to read and the contract for programs: all from this worker, and safe to open."""

import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest

from tests.support.fakes import answering
from tests.support.web_client import Web, serving
from web.page import STATIC
from web.routes import ROUTES


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def test_the_page_may_only_use_what_comes_from_here(web: Web) -> None:
    answer = await web.call("GET", "/", key=None)

    assert answer.status == 200
    assert answer.content_type == "text/html"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for part in ("script-src", "style-src", "connect-src"):
        assert f"{part} 'self'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy


async def test_its_files_are_there_and_are_not_sent_twice(web: Web) -> None:
    html = await (await web.call("GET", "/", key=None)).text()
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
    assert files

    for path in files:
        first = await web.call("GET", path, key=None)
        again = await web.call("GET", path, key=None, headers={"If-None-Match": first.headers["ETag"]})

        assert first.status == 200
        assert first.headers["Cache-Control"] == "no-cache"
        assert again.status == 304
        assert await again.read() == b""
    assert (await web.call("GET", "/static/main.js", key=None)).content_type == "text/javascript"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../site.py",
        "/static/..%2fsite.py",
        "/static/%2e%2e/site.py",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/none.js",
        "/static/styles",
        "/static/a%00b",
    ],
)
async def test_nothing_else_is_served(web: Web, path: str) -> None:
    url = web.server.make_url("").with_path(path, encoded=True)
    answer = await web.session.get(url)

    assert answer.status == 404
    assert (await answer.json())["error"]["code"] == "not_found"


def test_the_folder_is_part_of_the_package() -> None:
    assert (STATIC / "index.html").is_file()


# -- the contract


async def test_the_contract_names_every_route(web: Web) -> None:
    contract = await (await web.call("GET", "/openapi.json", key=None)).json()

    assert contract["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, methods in contract["paths"].items() for method in methods}
    served = {
        (route.method, route.resource.canonical)
        for route in web.server.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert listed == {(method, path) for method, path in served}
    assert len(listed) == len(ROUTES)
    assert len({operation["operationId"] for operation in operations(contract)}) == len(ROUTES)


def operations(contract: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in contract["paths"].values() for operation in methods.values()]


async def test_every_reference_in_the_contract_leads_somewhere(web: Web) -> None:
    contract = await (await web.call("GET", "/openapi.json", key=None)).json()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    for reference in references(contract):
        place: Any = contract
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


async def test_answers_are_as_the_contract_says(web: Web) -> None:
    contract = await (await web.call("GET", "/openapi.json", key=None)).json()
    web.worker.script = answering(["x"])
    conversation_id = await web.begin(title="Tea")
    turn_id = await web.ask("Why?", conversation_id)
    path = f"/v1/conversations/{conversation_id}"

    for method, template, where, body in (
        ("POST", "/v1/conversations", "/v1/conversations", {}),
        ("GET", "/v1/conversations", "/v1/conversations", None),
        ("GET", "/v1/conversations/{conversation_id}", path, None),
        ("PATCH", "/v1/conversations/{conversation_id}", path, {"title": "x"}),
        ("POST", "/v1/conversations/{conversation_id}/turns", f"{path}/turns", {"input": "x"}),
        ("GET", "/v1/turns/{turn_id}", f"/v1/turns/{turn_id}", None),
        ("POST", "/v1/turns/{turn_id}/stop", f"/v1/turns/{turn_id}/stop", None),
        ("POST", "/v1/turns/{turn_id}/regenerate", f"/v1/turns/{turn_id}/regenerate", None),
        ("POST", "/v1/turns/{turn_id}/edit", f"/v1/turns/{turn_id}/edit", {"input": "y"}),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("GET", "/v1/models", "/v1/models", None),
        ("GET", "/v1/models/{model_id}", "/v1/models/headrace", None),
        ("GET", "/v1/me", "/v1/me", None),
        ("GET", "/healthz", "/healthz", None),
        ("GET", "/readyz", "/readyz", None),
    ):
        answer = await web.call(method, where, body)
        said = contract["paths"][template][method.lower()]["responses"]

        assert str(answer.status) in said, (method, where, await answer.text())
        schema = said[str(answer.status)]["content"]["application/json"]["schema"]
        jsonschema.validate(await answer.json(), {**schema, "components": contract["components"]})


async def test_the_contract_can_be_read_by_people_without_a_script(web: Web) -> None:
    answer = await web.call("GET", "/docs", key=None)
    html = await answer.text()

    assert answer.content_type == "text/html"
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert "<script" not in html
    for route in ROUTES:
        assert route.path.replace(":.+", "") in html
    targets = set(re.findall(r'href="#([^"]+)"', html))
    assert targets <= set(re.findall(r'id="([^"]+)"', html))
    assert targets


# -- health


async def test_a_worker_that_is_not_ready_is_alive_and_says_what_it_waits_for(web: Web) -> None:
    web.worker.why_not_ready = "tables are being recovered"

    alive = await web.call("GET", "/healthz", key=None)
    ready = await web.call("GET", "/readyz", key=None)

    assert alive.status == 200
    assert ready.status == 503
    assert "Retry-After" in ready.headers
    error = (await ready.json())["error"]
    assert error["code"] == "not_ready"
    assert "tables are being recovered" in error["message"]


async def test_requests_are_counted_by_route_and_never_by_id(web: Web) -> None:
    conversation_id = await web.begin()
    await web.call("GET", f"/v1/conversations/{conversation_id}")
    await web.call("GET", "/v1/nothing-that-is-there")

    answer = await web.call("GET", "/metrics", key=None)
    text = await answer.text()

    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'headrace_http_requests_total{route="/v1/conversations/{conversation_id}",status="200"}' in text
    assert 'headrace_http_requests_total{route="other",status="404"}' in text
    assert conversation_id not in text
    assert "nothing-that-is-there" not in text
