"""Which kinds of files can be learned, by their names, their media types and their first bytes."""

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
ZIP: Final = b"PK\x03\x04"
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


def media_type_in(data: bytes, expected: str) -> str | None:
    """Return what a file is that is expected to be something; None for one of a kind that we cannot read.

    A PDF is one under any name. Everything else has to look like what it is called.
    """
    if b"%PDF-" in data[:1024]:
        return "application/pdf"
    match MEDIA_TYPES[expected]:
        case "pdf":
            return None
        case "docx":
            return expected if data.startswith(ZIP) else None
        case _:
            is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
            return expected if is_utf16 or b"\0" not in data[:8192] else None
