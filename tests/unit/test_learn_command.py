"""Files and folders become documents under ids that stay the same, and what has not changed is left alone."""

from pathlib import Path

import pytest

from domain.files import DOCX, media_type_of
from domain.knowledge import DocumentStatus
from streams.learn_command import DIGEST, _digest, _document, _is_learned, files_in

OWNER = ("acme", "ann")


def test_a_folder_gives_what_can_be_read_of_it_under_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "handbook"
    (root / "leave").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("a.md", "leave/b.PDF", "leave/c.exe", ".git/d.md", "leave/.hidden.txt"):
        (root / name).write_bytes(b"x")

    assert [name for name, _ in files_in([root])] == ["handbook/a.md", "handbook/leave/b.PDF"]
    assert [name for name, _ in files_in([root / "a.md", root / "leave/c.exe"])] == ["a.md"]


@pytest.mark.parametrize(
    ("name", "said", "kind"),
    [
        ("a.pdf", "", "application/pdf"),
        ("a.PDF", "text/plain", "application/pdf"),
        ("a.docx", "", DOCX),
        ("README", "text/markdown; charset=utf-8", "text/markdown"),
        ("a.exe", "application/octet-stream", None),
        ("README", "", None),
    ],
)
def test_a_file_is_what_its_name_says_or_else_its_sender(name: str, said: str, kind: str | None) -> None:
    assert media_type_of(name, said) == kind


def test_texts_travel_as_text_and_what_needs_a_parser_as_the_file_it_is() -> None:
    text = _document("h/a.md", Path("h/a.md"), "# Größe".encode(), OWNER, ["bob"])
    old = _document("h/b.txt", Path("h/b.txt"), "Größe".encode("cp1252"), OWNER, [])
    pdf = _document("h/c.pdf", Path("h/c.pdf"), b"%PDF", OWNER, [])

    assert (text.text, text.file, text.readers, text.name) == ("# Größe", b"", ["bob"], "a.md")
    assert (old.text, old.file, pdf.file, pdf.media_type) == ("", b"Gr\xf6\xdfe", b"%PDF", "application/pdf")


@pytest.mark.parametrize(
    ("status", "data", "readers", "learned"),
    [
        ("learned", b"same", [], True),
        ("learned", b"other", [], False),
        ("failed", b"same", [], False),
        ("queued", b"same", [], False),
        ("learned", b"same", ["bob"], False),
    ],
)
def test_what_is_learned_as_it_is_need_not_be_sent(status: str, data: bytes, readers: list[str], learned: bool) -> None:
    known = DocumentStatus("d", "acme", "ann", status=status, metadata={DIGEST: _digest(b"same")})  # type: ignore[arg-type]

    assert _is_learned(known, data, readers) is learned
    assert not _is_learned(None, data, readers)
