"""Writes the reference pages that say what the code says: settings.md, metrics.md and metrics.v1.schema.json.

python -m docs.generate            writes them
python -m docs.generate --check    tells which are stale, and exits with 1 if any is
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from config import metrics
from config.settings import Settings, variable
from tables.metric_rows import METRIC_TYPES, MetricRow

HERE: Final = Path(__file__).parent
NOTE: Final = "<!-- Written by `make docs` from {source}. Edit that. -->"


def settings_page() -> str:
    """Return docs/settings.md: every variable with its type, its default and its argument."""
    lines = [
        "# Settings",
        "",
        NOTE.format(source="config/settings.py"),
        "",
        "All settings are environment variables, read once at the start. A wrong value stops the start, and the",
        "message names the variable and what it may be. A variable that is almost one of these is taken for a slip of",
        "the pen and stops the start too. An empty text is a value: to get the default, leave the variable out.",
        "",
        "| variable | type | default | what it is for |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        cells = f"`{variable(name)}`", kind_of(field), default_of(field), field.description or ""
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def kind_of(field: FieldInfo) -> str:
    """Return a field's type and bounds as a person would say them."""
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(field.annotation))
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", SecretStr: "secret"}
    assert field.annotation in plain, f"docs/generate.py has no word for {field.annotation}"
    return ", ".join([plain[field.annotation], *bounds(field.metadata)])


def bounds(metadata: Iterable[Any]) -> list[str]:
    """Return the limits among a field's metadata."""
    found = []
    for limit in metadata:
        match limit:
            case Ge(ge=least):
                found.append(f"at least {least}")
            case Gt(gt=below):
                found.append(f"more than {below}")
            case Le(le=most):
                found.append(f"at most {most}")
            case Lt(lt=above):
                found.append(f"less than {above}")
            case _ if pattern := getattr(limit, "pattern", None):
                found.append(f"matching `{pattern}`")
    return found


def default_of(field: FieldInfo) -> str:
    """Return a field's default as it would be typed."""
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return f"`{default}`" if default != "" else "empty"


def metrics_page() -> str:
    """Return docs/metrics.md: every metric with the question it answers."""
    lines = [
        "# Metrics",
        "",
        NOTE.format(source="config/metrics.py"),
        "",
        "Every worker serves these at `GET /metrics` in Prometheus's format, beside those of its Python process",
        "(`process_*`, `python_*`). Names end in their unit; counters end in `_total`. Times are in seconds.",
        "",
        "| metric | kind | answers | labels |",
        "|---|---|---|---|",
    ]
    for entry in metrics.catalogue:
        cells = f"`{entry.name}`", entry.kind, entry.question, labels_of(entry.labels)
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def labels_of(labels: Mapping[str, str]) -> str:
    """Return each label with the values it takes."""
    return "; ".join(f"`{name}`: {values}" for name, values in labels.items())


def row(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def metrics_schema() -> str:
    """Return docs/metrics.v1.schema.json: what the metrics topics carry, as JSON Schema."""
    kinds = [MetricRow[kind] for kind in METRIC_TYPES.values()]  # type: ignore[valid-type]  # it is one when it runs
    rows, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    topics = zip(METRIC_TYPES, rows, strict=True)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rows of the metrics topics",
        "description": "Written by `make docs` from tables/metric_rows.py. Edit that.",
        "oneOf": [{"title": f"chat.metrics.{name}.{{10s,1m,5m}}.v1", **row} for name, row in topics],
        "$defs": definitions,
    }
    return json.dumps(schema, indent=2) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "metrics.v1.schema.json": metrics_schema,
}


def stale(folder: Path = HERE) -> list[str]:
    """Return the pages that do not say what the code says."""
    return [
        name for name, page in PAGES.items() if not (folder / name).exists() or (folder / name).read_text() != page()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them."""
    found = stale()
    if "--check" in arguments:
        for name in found:
            print(f"docs/{name} is stale: run `make docs`", file=sys.stderr)
        return bool(found)
    for name in found:
        (HERE / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
