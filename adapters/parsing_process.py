"""The process that reads files for `adapters.parsers`: what comes from outside is taken apart apart from us.

    python -m adapters.parsing_process TEXT_BYTES PARENT CONTROL

It is given each file's kind and a connection, over the socket whose descriptor is CONTROL, and forks for it. The fork
reads the file from the connection, writes a msgpack `Parsed` and ends. It may use so much memory and time and no
more; a file that ends it ends nothing else.

Forks are made here and not by the worker, because starting a process stops a worker with all its streams until that
has begun: tens of milliseconds at the median on two busy cores, and 150 at times.
"""

import io
import os
import re
import resource
import signal
import socket
import sys
import zipfile
from importlib import import_module
from typing import BinaryIO, Final

import msgspec

from adapters.priority import come_after
from adapters.tether import tie

MEMORY_BYTES: Final = 1 << 30
SECONDS: Final = 60
PAGES: Final = 2000
UNZIPPED_BYTES: Final = 200 << 20
DECLARED: Final = re.compile(rb"""charset=["']?([A-Za-z0-9_.:-]{2,40})""")
LIBRARIES: Final = {"pdf": ["pypdf"], "docx": ["mammoth", "bs4", "markdownify"], "html": ["bs4", "markdownify"]}
"""What a kind needs. Imported once, where it is needed for the first time, and shared by all forks from then on."""

BINARY: Final = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Parsed(msgspec.Struct, frozen=True):
    """What a file says, in Markdown, and what it calls itself; or why it cannot be read, for who gave it."""

    text: str = ""
    title: str = ""
    error: str = ""


class Unreadable(Exception):
    """A file that cannot be read, and what to do about it."""


def parse(kind: str, data: bytes) -> Parsed:
    """Return what a file says. Raises `Unreadable`, and whatever the parsers do."""
    match kind:
        case "pdf":
            return _pdf(data)
        case "docx":
            return _docx(data)
        case "html":
            return _html(_decoded(data, DECLARED.search(data[:4096])))
        case _:
            return Parsed(_decoded(data))


def _decoded(data: bytes, declared: re.Match[bytes] | None = None) -> str:
    """Return a text file's text: UTF-8, UTF-16 by its mark, what it declares itself to be, or what Windows wrote."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode(declared[1].decode() if declared else "cp1252", errors="replace")
        except LookupError:  # there is no such encoding
            text = data.decode("cp1252", errors="replace")
    if BINARY.search(text[:100_000]):
        raise Unreadable("The file is no text, whatever its name says. Give it its own ending, or save it as text.")
    return text


def _pdf(data: bytes) -> Parsed:
    from pypdf import PdfReader  # noqa: PLC0415 - only one parser is needed
    from pypdf.errors import PyPdfError  # noqa: PLC0415

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("The PDF is protected by a password. Save it without one.")
        if len(reader.pages) > PAGES:
            raise Unreadable(f"The PDF has {len(reader.pages)} pages. At most {PAGES} are read: divide it.")
        pages = [_without_hyphens(page.extract_text() or "") for page in reader.pages]
        title = str((reader.metadata.title if reader.metadata else "") or "")
    except PyPdfError as error:
        raise Unreadable(f"The PDF is damaged: {error}. Save it anew.") from error
    if not any(page.strip() for page in pages):
        raise Unreadable("The PDF has no text, only images. Have it read by OCR first.")
    return Parsed(_utf8("\n\n".join(page.strip("\n") for page in pages)), _utf8(title))


def _utf8(text: str) -> str:
    """Return a text without the halves of characters that a PDF's fonts may make of it: nothing could encode them."""
    return text.encode("utf-8", errors="replace").decode()


def _without_hyphens(page: str) -> str:
    """Return a page's text with the words whole that its lines divide."""
    return re.sub(r"(?<=[^\W\d_])-\n(?=[^\W\d_])", "", page)


def _docx(data: bytes) -> Parsed:
    import mammoth  # noqa: PLC0415

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(each.file_size for each in archive.infolist()) > UNZIPPED_BYTES:
                raise Unreadable(f"The document unpacks to more than {UNZIPPED_BYTES >> 20} MB. Divide it.")
            if "word/document.xml" not in archive.namelist():
                raise Unreadable("The file is no Word document (.docx). An older .doc has to be saved as .docx.")
        # Pictures would stand in the text as megabytes of base64.
        html = mammoth.convert_to_html(
            io.BytesIO(data), convert_image=mammoth.images.img_element(lambda _: {"src": ""})
        )
    except zipfile.BadZipFile as error:
        raise Unreadable("The Word document is damaged, or no .docx. Save it anew.") from error
    return _html(html.value)


def _html(text: str) -> Parsed:
    from bs4 import BeautifulSoup  # noqa: PLC0415
    from markdownify import MarkdownConverter  # noqa: PLC0415

    page = BeautifulSoup(text, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for each in page.select("script, style, noscript, template, nav, header, footer, aside, form, iframe, svg, title"):
        each.decompose()
    markdown = MarkdownConverter(heading_style="ATX", strip=["img"]).convert_soup(page.main or page.body or page)
    return Parsed(re.sub(r"\n{3,}", "\n\n", markdown).strip(), title)


def answer(file: BinaryIO, kind: str, text_bytes: int) -> Parsed:
    """Return what a file says, or why that cannot be told."""
    try:
        parsed = parse(kind, file.read())
        if len(parsed.text.encode()) > text_bytes:
            raise Unreadable(f"The file has more than {text_bytes >> 20} MB of text. Divide it.")
        if not parsed.text.strip():
            raise Unreadable("The file has no text.")
    except Unreadable as error:
        return Parsed(error=str(error))
    except MemoryError:
        return Parsed(error="The file takes too much memory to be read. Divide it.")
    except Exception as error:  # noqa: BLE001 - whatever a file makes of a parser
        return Parsed(error=f"The file cannot be read ({type(error).__name__}). Save it anew, or as another kind.")
    return parsed


def read_file(connection: socket.socket, kind: str, text_bytes: int) -> None:
    """Read the file that comes on a connection, within limits, and answer."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(SECONDS)
    with connection, connection.makefile("rb") as file, connection.makefile("wb") as out:
        out.write(msgspec.msgpack.encode(answer(file, kind, text_bytes)))


def serve(control: socket.socket, text_bytes: int) -> None:
    """Fork for each file, until nobody can send one any more."""
    this = os.getpid()
    while True:
        kind, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if not descriptors:
            return
        for library in LIBRARIES.get(kind.decode(), ()):
            import_module(library)
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                tie(this, signal.SIGKILL)
                control.close()
                read_file(connection, kind.decode(), text_bytes)
                os._exit(0)


def main() -> None:
    """Serve."""
    # Both go to all processes of a terminal or a container. The worker kills us when it is done with us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave nothing behind
    text_bytes, parent, control = map(int, sys.argv[1:4])
    tie(parent, signal.SIGKILL)
    come_after()
    with socket.socket(fileno=control) as files:
        serve(files, text_bytes)


if __name__ == "__main__":
    main()
