"""Files and folders become documents under ids that stay the same, and what has not changed is left alone."""

from pathlib import Path

import pytest

from config.settings import Settings
from domain.files import DOCX, media_type_of
from domain.knowledge import DocumentStatus
from streams.learn_command import DIGEST, Refused, _digest, _document, _is_learned, _owner, by_id, files_in

OWNER = ("acme", "ann")


def test_a_folder_gives_what_can_be_read_of_it_under_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "handbook"
    (root / "leave").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("a.md", "leave/b.PDF", "leave/c.exe", ".git/d.md", "leave/.hidden.txt"):
        (root / name).write_bytes(b"x")

    assert [name for name, _ in files_in([root])] == ["handbook/a.md", "handbook/leave/b.PDF"]
    assert [name for name, _ in files_in([root / "a.md", root / "leave/c.exe"])] == ["a.md"]


def test_two_files_that_would_be_one_document_are_refused_and_one_given_twice_is_not(tmp_path: Path) -> None:
    for name in ("a/docs", "b/docs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "README.md").write_text("x")

    with pytest.raises(Refused) as refused:
        by_id(files_in([tmp_path / "a/docs", tmp_path / "b/docs"]))
    assert all(name in str(refused.value) for name in ("a/docs/README.md", "b/docs/README.md"))
    assert len(by_id(files_in([tmp_path]))) == 2
    assert len(by_id(files_in([tmp_path / "a/docs", tmp_path / "a/docs"]))) == 1


@pytest.mark.parametrize(("tenant", "user"), [("a/b", "ann"), ("acme", "a" * 513), ("", "ann")])
def test_an_owner_that_no_document_could_have_is_refused(tenant: str, user: str) -> None:
    with pytest.raises(Refused, match=r"1 to 512 characters|no slash"):
        _owner(Settings(), tenant, user)


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
