"""What our pages tell a newcomer to open or to type is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    inside = [link for link in links if not re.match(r"[a-z]+:", link)]

    assert [link for link in inside if not (page.parent / link).exists()] == []


@each_page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    text = page.read_text()

    in_prose = re.findall(r"`make ([a-z-]+)", text)
    in_blocks = re.findall(r"^(?:\$ )?make ([a-z-]+)(?=\s*$|\s+#|\s+\w+=)", text, re.MULTILINE)

    assert {*in_prose, *in_blocks} <= TARGETS


def test_every_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()

    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))

    assert phony == explained == TARGETS
