"""The contract for people: one page made from the OpenAPI document, without scripts and without another server."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Any, Final

from aiohttp import web

from web.openapi import Document

DOCS: Final = web.AppKey("docs", str)

STYLE: Final = """
:root {
  color-scheme: light dark;
  --line: color-mix(in srgb, currentColor 18%, transparent);
  --soft: color-mix(in srgb, currentColor 7%, transparent);
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 6rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
code, pre, .path { font-family: ui-monospace, monospace; font-size: .92em; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: 0 .9rem; }
details[open] { padding-bottom: .9rem; }
summary { cursor: pointer; padding: .55rem 0; }
summary .does { opacity: .75; }
.method { display: inline-block; font-weight: 700; min-width: 4.8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
.open { background: var(--soft); border-radius: 1rem; font-size: .8em; padding: .1rem .6rem; }
:target { outline: 2px solid; outline-offset: .3rem; }
"""

LIMITS: Final = {
    "format": "{}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "minimum": "from {}",
    "maximum": "to {}",
}

_HASH: Final = b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def docs(request: web.Request) -> web.StreamResponse:
    """Return the contract to read."""
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return web.Response(text=request.app[DOCS], content_type="text/html", headers=headers)


def page(document: Document) -> str:
    """Return an OpenAPI document as a page."""
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    groups = "".join(
        f"<h2>{escape(tag['name'])}</h2>"
        + "".join(_operation(*one) for one in operations if one[2]["tags"] == [tag["name"]])
        for tag in document["tags"]
    )
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>"
        f"<p>{_prose(info['description'])} For programs: <a href='/openapi.json'>openapi.json</a>.</p>"
        f"{groups}<h2>Bodies</h2>{schemas}</body></html>"
    )


def _operation(path: str, method: str, operation: Document) -> str:
    opened = '<span class="open">no key</span>' if operation.get("security") == [] else ""
    parts = [f"<p>{_prose(operation['description'])}</p>"] if "description" in operation else []
    parts.append(_parameters(operation.get("parameters", [])))
    if "requestBody" in operation:
        parts.append(f"<p>Takes {_content(operation['requestBody']['content'])}.</p>")
    for status, response in operation["responses"].items():
        if status != "default":
            given = _content(response.get("content", {})) or "no body"
            parts.append(f"<p>Answers {escape(status)} {escape(response['description'])}: {given}.</p>")
    name = f'<span class="method">{escape(method.upper())}</span><span class="path">{escape(path)}</span>'
    summary = f'<summary>{name} <span class="does">{_prose(operation["summary"])}</span> {opened}</summary>'
    return f'<details id="{escape(operation["operationId"])}">{summary}{"".join(parts)}</details>'


def _parameters(parameters: list[Document]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{_type(one['schema'])}</td><td>{_prose(one.get('description', ''))}</td></tr>"
        for one in parameters
    )
    return f"<table><tr><th>Parameter</th><th>In</th><th>Type</th><th></th></tr>{rows}</table>" if rows else ""


def _content(content: Document) -> str:
    return " or ".join(
        f"{_type(body['schema'])} as <code>{escape(kind)}</code>"
        if "$ref" in body["schema"]
        else f"<code>{escape(kind)}</code>"
        for kind, body in content.items()
    )


def _schema(name: str, schema: Document) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(kind)}</td>"
        f"<td>{'required' if field in required else ''}</td></tr>"
        for field, kind in schema.get("properties", {}).items()
    )
    return (
        f'<details><summary><span class="path">{escape(name)}</span>'
        f' <span class="does">{_prose(schema.get("description", ""))}</span></summary>'
        # The anchor is inside, so that following a link to it opens the details.
        f'<table id="{escape(name)}"><tr><th>Field</th><th>Type</th><th></th></tr>{rows}</table></details>'
    )


def _type(schema: Document) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(_value(value))}</code>" for value in schema["enum"])
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array":
        kind = f"array of {_type(schema.get('items', {}))}"
    limits = [words.format(schema[key]) for key, words in LIMITS.items() if key in schema]
    return f"{kind} ({', '.join(limits)})" if limits else kind


def _value(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _prose(text: str) -> str:
    """Return text with its `code` marked."""
    parts = escape(" ".join(text.split())).replace("``", "`").split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
