"""Which kinds of files can be learned, by their names and media types."""

from pathlib import PurePosixPath
from typing import Final, Literal

Kind = Literal["text", "markdown", "html", "pdf", "docx"]

DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
MEDIA_TYPES: Final[dict[str, Kind]] = {
    "text/plain": "text",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    DOCX: "docx",
}
SUFFIXES: Final = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
    ".docx": DOCX,
}


def media_type_of(name: str, said: str = "") -> str | None:
    """Return what a file is, by the end of its name, else by what its sender said; None where we cannot read that."""
    by_name = SUFFIXES.get(PurePosixPath(name.lower()).suffix)
    plain = said.partition(";")[0].strip().lower()
    return by_name or (plain if plain in MEDIA_TYPES else None)
