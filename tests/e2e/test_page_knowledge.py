"""Sources are read, documents given and watched, memories corrected and erased, and none of their texts is trusted."""

from typing import Any

import pytest
from playwright.async_api import FilePayload, Page, expect

from tests.e2e.acting import ask, drop_file, expect_ended, last_answer
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def citations(*texts: str, title: str = "Manual", url: str = "https://example.invalid/m") -> list[dict[str, Any]]:
    return [
        {"n": n, "document_id": f"d{n}", "title": f"{title} {n}", "url": url, "text": text}
        for n, text in enumerate(texts, 1)
    ]


async def open_panel(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).click()
    await expect(page.locator("dialog[open]")).to_have_count(1)


# -- sources


async def test_a_mark_opens_its_passage_and_escape_leads_back(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.cite(citations("Brokers store logs.", "Second."))
    await turn.say("It is so [1], `rows[2]` and [7].")
    await turn.complete()
    await expect_ended(page)

    mark = last_answer(page).get_by_role("button", name="Source 1: Manual 1")
    await expect(last_answer(page).get_by_role("button")).to_have_count(1)
    await mark.focus()
    await page.keyboard.press("Enter")

    await expect(page.locator("#passage-title")).to_have_text("Manual 1")
    await expect(page.locator("#passage-text")).to_have_text("Brokers store logs.")
    await expect(page.locator("#passage-link")).to_have_attribute("href", "https://example.invalid/m")
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog[open]")).to_have_count(0)
    await expect(mark).to_be_focused()


async def test_a_mark_that_comes_in_two_pieces_becomes_one(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.cite(citations("One.", "Two."))
    for piece in ("So ", "[", "1", ", 2", "]", " it is"):
        await turn.add("token", text=piece)

    await expect(last_answer(page).locator(".mark")).to_have_text(["1", "2"])
    await turn.complete()
    await expect(page.locator(".sources .source")).to_have_text(["1 Manual 1", "2 Manual 2"])


async def test_sources_of_a_conversation_that_is_read_again_have_their_texts_from_the_turn(
    page: Page, server: PageServer
) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.cite(citations("Brokers store logs."))
    await turn.say("Because.")
    await turn.complete()
    await expect_ended(page)
    await page.reload()

    await page.locator(".source").click()

    await expect(page.locator("#passage-text")).to_have_text("Brokers store logs.")


async def test_what_documents_say_is_only_ever_text(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.cite(citations(HOSTILE, title=HOSTILE, url="javascript:alert(3)"))
    await turn.say("So [1].")
    await turn.complete()
    await expect_ended(page)
    server.knowledge.add_document(HOSTILE, "failed", error=HOSTILE)
    server.knowledge.add_memory(HOSTILE)

    await last_answer(page).locator(".mark").click()
    await expect(page.locator("#passage-text")).to_have_text(HOSTILE)
    await expect(page.locator("#passage-link")).to_be_hidden()
    await page.keyboard.press("Escape")
    await open_panel(page, "Documents")
    await expect(page.locator("#documents-list .name")).to_have_text(HOSTILE)
    await page.keyboard.press("Escape")
    await open_panel(page, "Memory")
    await expect(page.locator("#memories-list .name")).to_have_text(HOSTILE)
    await expect(page.locator("img, dialog script")).to_have_count(0)


async def test_an_answer_from_the_cache_says_so(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.say("Because.")
    await turn.complete(cache="exact")

    await expect(page.locator(".meta")).to_contain_text("from the cache")


# -- documents


async def test_each_file_is_a_row_and_a_bad_one_stops_no_other(page: Page, server: PageServer) -> None:
    await open_panel(page, "Documents")
    await expect(page.locator("#documents-empty")).to_be_visible()
    files = [("guide.pdf", b"%PDF"), ("tool.exe", b"MZ"), ("bad.docx", b"PK")]
    payloads: list[FilePayload] = [{"name": name, "mimeType": "application/x", "buffer": data} for name, data in files]
    await page.set_input_files("#documents-files", payloads)
    rows = page.locator("#documents-list li")

    await expect(rows.filter(has_text="tool.exe")).to_contain_text("cannot be read")
    await expect(rows.filter(has_text="guide.pdf")).to_contain_text("Being learned")
    guide, bad = (
        next(each for each in server.knowledge.documents.values() if each["title"] == name)
        for name in ("guide.pdf", "bad.docx")
    )
    guide |= {"status": "learned", "passages": 12}
    bad |= {"status": "failed", "error": "The Word document is damaged."}

    await expect(rows.filter(has_text="guide.pdf")).to_contain_text("Learned, 12 passages")
    await expect(rows.filter(has_text="bad.docx")).to_contain_text("The Word document is damaged.")
    assert server.knowledge.received == {"guide.pdf": b"%PDF", "bad.docx": b"PK"}


async def test_files_that_are_dropped_on_the_page_are_given(page: Page, server: PageServer) -> None:
    await drop_file(page, "leave.md", "text/markdown", b"# Leave")

    await expect(page.locator("#documents-list li")).to_contain_text("leave.md")
    await expect(page.locator("#drop")).to_be_hidden()
    await server.until(lambda: server.knowledge.received == {"leave.md": b"# Leave"})


async def test_a_document_is_deleted_when_that_is_confirmed(page: Page, server: PageServer) -> None:
    server.knowledge.add_document("Manual")
    await open_panel(page, "Documents")
    row = page.locator("#documents-list li")

    await row.get_by_role("button", name="Delete").click()
    await row.get_by_role("button", name="Keep").click()
    await expect(row).to_contain_text("Learned, 3 passages")
    await row.get_by_role("button", name="Delete").click()
    await row.get_by_role("button", name="Delete").click()

    await expect(row).to_have_count(0)
    await server.until(lambda: not server.knowledge.documents)
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog[open]")).to_have_count(0)


async def test_a_list_that_cannot_be_read_says_so_and_can_be_asked_for_again(page: Page, server: PageServer) -> None:
    server.knowledge.add_document("Manual")
    server.refuse("GET /v1/documents", 404, message="gone")
    await open_panel(page, "Documents")

    await expect(page.locator("#documents-problem")).to_be_visible()
    await page.locator("#documents-again").click()

    await expect(page.locator("#documents-list li")).to_contain_text("Manual")
    await expect(page.locator("#documents-problem")).to_be_hidden()


# -- memories


async def test_what_is_remembered_can_be_changed_and_erased(page: Page, server: PageServer) -> None:
    server.knowledge.add_memory("The user's name is Ann.")
    server.knowledge.add_memory("The user uses Kafka 4.")
    await open_panel(page, "Memory")
    rows = page.locator("#memories-list li")

    await rows.first.get_by_role("button", name="Change").click()
    await page.get_by_label("What is remembered", exact=True).last.fill("The user's name is Bea.")
    await page.keyboard.press("Enter")
    await expect(rows.first).to_contain_text("Bea")
    await rows.first.get_by_role("button", name="Forget").click()
    await expect(rows).to_have_text(["The user uses Kafka 4."])
    await page.get_by_role("button", name="Forget everything").click()

    await expect(page.locator("#memories-empty")).to_contain_text("Nothing yet")
    assert server.knowledge.memories == {}
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog[open]")).to_have_count(0)


async def test_memory_is_switched_off_by_the_user_and_not_where_the_operator_did(
    page: Page, server: PageServer
) -> None:
    await open_panel(page, "Memory")
    await page.get_by_label("Remember what I tell about myself").uncheck()
    await server.until(lambda: not server.knowledge.enabled)
    await expect(page.locator("#memories-empty")).to_contain_text("Memory is off")
    await page.keyboard.press("Escape")
    server.knowledge.switchable = False
    await open_panel(page, "Memory")

    await expect(page.get_by_label("Remember what I tell about myself")).to_be_disabled()
    await expect(page.locator("#memories-empty")).to_contain_text("switched off on this server")
