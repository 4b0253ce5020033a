"""Every kind of file comes out as Markdown; a bad one as a sentence that says what to do, and nothing else happens."""

import asyncio
import errno
import io
import signal
import sys
from typing import Any

import psutil
import pytest
from pypdf import PageObject, PdfReader, PdfWriter

from adapters import parsers, parsing_process
from adapters.parsers import ParserUnavailable, Unreadable, open_parsers
from domain.files import DOCX, media_type_in
from tests.support.document_files import docx, pdf
from tests.support.model_client import until

PDF = "application/pdf"
MB = 1 << 20


async def read(data: bytes, media_type: str, *, most_bytes: int = MB) -> str:
    async with open_parsers(most_bytes) as parsers:
        return (await parsers.parse(data, media_type)).text


def encrypted(password: str, algorithm: str) -> bytes:
    writer, file = PdfWriter(PdfReader(io.BytesIO(pdf("Secret"))).stream), io.BytesIO()
    writer.encrypt(password, "the owner's", algorithm=algorithm)
    writer.write(file)
    return file.getvalue()


async def test_a_pdf_gives_the_text_of_its_pages() -> None:
    assert await read(pdf("The wombat is\ncalled Gustav.", "Page two."), PDF) == (
        "The wombat is\ncalled Gustav.\n\nPage two."
    )


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
async def test_a_pdf_that_is_encrypted_only_against_changes_is_read(algorithm: str) -> None:
    assert await read(encrypted("", algorithm), PDF) == "Secret"


async def test_a_word_document_keeps_headings_and_tables() -> None:
    cells = "".join(f"<w:tc><w:p><w:r><w:t>{each}</w:t></w:r></w:p></w:tc>" for each in ("key", "value"))

    assert await read(docx("Thirty days.", heading="Leave"), DOCX) == "# Leave\n\nThirty days."
    assert "| key | value |" in await read(docx(body=f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"), DOCX)


async def test_a_page_gives_what_it_says_and_not_what_stands_around_it() -> None:
    page = b"""<title>Leave</title><nav>Home</nav><script>alert(1)</script><style>p {}</style>
        <main><h1>Leave</h1><p>Thirty <b>days</b>.</p><ul><li>a<li>b</ul></main><footer>Imprint</footer>"""

    async with open_parsers(MB) as parsers:
        parsed = await parsers.parse(page, "text/html")

    assert parsed.title == "Leave"
    assert parsed.text.startswith("# Leave\n\nThirty **days**.")
    assert not any(word in parsed.text for word in ("Home", "alert", "Imprint", "{}"))


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        ("Größe".encode(), "text/plain"),
        ("Größe".encode("utf-8-sig"), "text/plain"),
        ("Größe".encode("utf-16"), "text/plain"),
        ("Größe".encode("cp1252"), "text/markdown"),
        ('<meta charset="iso-8859-15"><p>Größe'.encode("iso-8859-15"), "text/html"),
    ],
)
async def test_a_text_is_read_in_the_encoding_that_it_has(data: bytes, media_type: str) -> None:
    assert await read(data, media_type) == "Größe"


@pytest.mark.parametrize(
    ("data", "media_type", "why"),
    [
        (b"%PDF-1.7 and then nothing", PDF, "damaged.*Save it anew"),
        (encrypted("password", "RC4-128"), PDF, "password.*Save it without"),
        (encrypted("password", "AES-256"), PDF, "password.*Save it without"),
        (pdf("", ""), PDF, "no text, only images.*OCR"),
        (b"PK\x03\x04 and then nothing", DOCX, "damaged.*Save it anew"),
        (docx("x", padding=210 * MB), DOCX, "unpacks to more than 200 MB"),
        (docx(body="<w:p>" * 50_000), DOCX, "cannot be read.*Save it anew"),
        (b"MZ\x00\x01\x02", "text/plain", "no text, whatever its name says"),
        (b" \n", "text/plain", "has no text"),
        (b"x" * (MB + 1), "text/plain", "more than 1 MB of text"),
        (b"x", "image/png", "image/png cannot be read"),
    ],
)
async def test_a_bad_file_is_answered_with_what_to_do(data: bytes, media_type: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        await read(data, media_type)


async def test_a_file_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "SECONDS", 0.3)

    with pytest.raises(Unreadable, match="not read within"):
        await read(b"<p>" + b"a<b>c</b>" * 100_000, "text/html")


def test_a_pdf_of_too_many_pages_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing_process, "PAGES", 2)

    assert parsing_process.parse("pdf", pdf("one", "two")).text == "one\n\ntwo"
    with pytest.raises(parsing_process.Unreadable, match=r"3 pages\. At most 2 are read: divide it"):
        parsing_process.parse("pdf", pdf("one", "two", "three"))


def test_half_a_character_which_no_encoding_has_spoils_no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageObject, "extract_text", lambda _: "half \ud800")  # of a font that maps to it

    assert parsing_process.parse("pdf", pdf("text")).text == "half ?"


async def test_a_file_that_takes_too_much_memory_ends_its_own_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = "import adapters.parsing_process as it; it.MEMORY_BYTES = 200 << 20; it.SECONDS = 20; it.main()"
    start = asyncio.create_subprocess_exec

    async def with_less(*command: str, **options: Any) -> asyncio.subprocess.Process:
        return await start(command[0], "-c", limited, *command[3:], **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", with_less)

    async with open_parsers(MB) as parsers:
        with pytest.raises(Unreadable, match=r"too much memory.*Divide it"):
            await parsers.parse(b"<b></b>" * 10 * MB, "text/html")
        assert (await parsers.parse(b"text", "text/plain")).text == "text"


READS_A_FILE = """
import asyncio
from adapters.parsers import Parsers

asyncio.run(Parsers(1 << 20).parse(b"<p>" + b"a<b>c</b>" * 1_000_000, "text/html"))
"""


async def test_the_process_that_reads_a_file_dies_with_a_worker_that_is_killed() -> None:
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", READS_A_FILE)
    of_worker = psutil.Process(worker.pid)
    await until(lambda: bool(of_worker.children()))
    await until(lambda: len(of_worker.children(recursive=True)) == 2)
    (forking,) = of_worker.children()
    (reading,) = forking.children()
    await until(lambda: reading.cpu_times().user > 0.1)  # it is at it
    reading.suspend()  # so that it cannot come to its end by itself
    worker.kill()
    await worker.wait()

    await until(lambda: not _lives(reading) and not _lives(forking))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_all_of_a_workers_processes_fails_no_file(stop: signal.Signals) -> None:
    reading = asyncio.create_task(read(b"<p>" + b"a<b>c</b>" * 50_000, "text/html"))

    for process in await both_at_work():
        process.send_signal(stop)

    assert (await reading).startswith("a**c**")


async def test_a_file_whose_process_is_killed_from_outside_is_read_later() -> None:
    async with open_parsers(MB) as parsers:
        reading = asyncio.create_task(parsers.parse(b"<p>" + b"a<b>c</b>" * 50_000, "text/html"))
        (await both_at_work())[0].kill()

        with pytest.raises(ParserUnavailable):
            await reading
        assert (await parsers.parse(b"text", "text/plain")).text == "text"


async def test_a_second_file_starts_no_process_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = asyncio.create_subprocess_exec

    async def spy(*command: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(command[2])
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)

    async with open_parsers(MB) as parsers:
        texts = await asyncio.gather(*(parsers.parse(b"text", "text/plain") for _ in range(5)))
    assert [parsed.text for parsed in texts] == ["text"] * 5
    assert started == ["adapters.parsing_process"]


async def both_at_work() -> tuple[psutil.Process, psutil.Process]:
    """Return the process that forks, and its fork that reads a file, once that is at it."""
    found: list[psutil.Process] = []

    def at_work() -> bool:
        found[:] = [each for each in psutil.Process().children() if "adapters.parsing_process" in each.cmdline()]
        found.extend(grandchild for each in list(found) for grandchild in each.children())
        return len(found) == 2 and found[1].cpu_times().user > 0.1

    await until(at_work)
    return found[0], found[1]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_a_process_that_is_stopped_before_it_reads_says_nothing_about_the_file(
    stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec

    async def stopped(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await start(sys.executable, "-c", f"import os, signal; signal.signal({stop:d}, signal.SIG_DFL);"
                           f" os.kill(os.getpid(), {stop:d})", **options)  # fmt: skip

    monkeypatch.setattr(asyncio, "create_subprocess_exec", stopped)

    with pytest.raises(ParserUnavailable):
        await read(b"text", "text/plain")


async def test_a_machine_that_starts_no_process_now_says_nothing_about_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(*_: str, **__: Any) -> asyncio.subprocess.Process:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)

    with pytest.raises(ParserUnavailable, match="Resource temporarily unavailable"):
        await read(b"text", "text/plain")


async def test_the_process_that_reads_a_file_is_given_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    given: dict[str, str] = {}
    start = asyncio.create_subprocess_exec

    async def spy(*command: str, **options: Any) -> asyncio.subprocess.Process:
        given.update(options["env"])
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)

    assert await read(b"text", "text/plain") == "text"
    assert given
    assert "OPENAI_API_KEY" not in given


@pytest.mark.parametrize(
    ("data", "expected", "found"),
    [
        (b"%PDF-1.7", "text/plain", PDF),
        (b"<html>", PDF, None),
        (b"PK\x03\x04", DOCX, DOCX),
        (b"\xd0\xcf\x11\xe0", DOCX, None),
        (b"text", "text/plain", "text/plain"),
        (b"MZ\x00\x03", "text/plain", None),
        ("text".encode("utf-16"), "text/plain", "text/plain"),
    ],
)
def test_a_file_has_to_look_like_what_it_is_called(data: bytes, expected: str, found: str | None) -> None:
    assert media_type_in(data, expected) == found
