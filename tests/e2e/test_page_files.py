"""The page's files: nothing that the strict policy forbids, nothing from elsewhere, libraries as published, small."""

import hashlib
import re

from web.page import STATIC


def test_nothing_in_the_page_needs_an_exception_from_the_strict_policy() -> None:
    html = (STATIC / "index.html").read_text()

    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", html))
    assert re.findall(r'(?:src|href)="(?!/static/|#)[^"]*"', html) == []


def test_the_vendored_libraries_are_those_that_their_note_names() -> None:
    note = (STATIC / "vendor" / "README.md").read_text()
    files = sorted(STATIC.glob("vendor/*/*.js"))

    assert len(files) == 2
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in note
        assert (file.parent / "LICENSE").exists()


def test_the_page_is_small() -> None:
    sizes = [file.stat().st_size for file in STATIC.rglob("*") if file.suffix in {".js", ".css", ".html", ".svg"}]

    assert sum(sizes) < 300_000
