"""The page on a real worker: from the browser through Kafka to the model and back."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, expect

from tests.conftest import StartWorker
from tests.e2e.acting import drop_file, expect_ended, expect_text, last_answer
from tests.support.cut_line import CutLine
from tests.support.document_files import pdf
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Writes down every alert and notice that a person could see, however short.
NOTE_TROUBLE = """() => {
  window.trouble = [];
  const look = () => {
    for (const shown of document.querySelectorAll("[role=alert], .notice, #list-problem")) {
      if (shown.checkVisibility() && shown.textContent.trim()) window.trouble.push(shown.textContent.trim());
    }
  };
  new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
PORT = "The broker of the warehouse listens on port 9092."
LEARNING_MS = 60_000  # with the start of the embedding model
ENDLESS = "How does a word get here? [tokens=5000 pace=50]"


async def test_an_answer_through_a_worker_survives_ten_lost_connections_and_a_reload(
    browser: Browser, services: Services, start_worker: StartWorker
) -> None:
    async with ModelServer() as model, await browser.new_context() as context:
        worker = await start_worker(services, OPENAI_BASE_URL=model.base_url, HEADRACE_ANSWER_TOKENS="5000")
        async with CutLine.to(worker.port) as line:
            page = await context.new_page()
            await page.goto(line.url)
            await page.get_by_label("Question", exact=True).fill(ENDLESS)
            async with page.expect_response("**/turns") as accepted:
                await page.keyboard.press("Enter")
            turn = (await (await accepted.value).json())["turn_id"]
            for number in range(10):
                await _more_of_the_answer(page)
                async with page.expect_request("**/events"):
                    line.cut()
                if number == 5:
                    await page.reload()
            await _more_of_the_answer(page)
            await page.keyboard.press("Escape")
            await expect(page.locator(".status")).to_contain_text("Stopped.")

            text = (await _get(page, f"/v1/turns/{turn}"))["answer"]
            assert "".join(expected_answer(ENDLESS)).startswith(text)
            await expect_text(page, _plain(text))
            await page.reload()
            await expect_text(page, _plain(text))
            await expect(page.locator(".turn")).to_have_count(1)


async def test_a_worker_that_is_killed_in_mid_answer_and_comes_back_is_no_news(
    browser: Browser, services: Services, start_worker: StartWorker
) -> None:
    async with ModelServer() as model, await browser.new_context() as context:
        worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
        page = await context.new_page()
        await page.goto(worker.url)
        await page.evaluate(NOTE_TROUBLE)
        question = "What if you die? [tokens=200 pace=50]"
        await page.get_by_label("Question", exact=True).fill(question)
        await page.keyboard.press("Enter")
        await _more_of_the_answer(page)

        worker.kill()
        await worker.start()

        await expect_text(page, _plain("".join(expected_answer(question))))
        await expect_ended(page)
        assert await page.evaluate("trouble") == []


async def test_a_conversation_on_a_worker_is_stopped_answered_again_edited_renamed_and_deleted(
    browser: Browser, services: Services, start_worker: StartWorker
) -> None:
    async with ModelServer() as model, await browser.new_context() as context:
        worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
        page = await context.new_page()
        await page.goto(worker.url)
        question = page.get_by_label("Question", exact=True)
        await question.fill("Endless [tokens=5000 pace=50]")
        await page.keyboard.press("Enter")
        await expect(last_answer(page)).not_to_be_empty()
        await page.keyboard.press("Escape")
        await expect(page.locator(".status")).to_contain_text("Stopped.")

        await page.get_by_role("button", name="Answer again").click()
        await expect(page.locator(".versions")).to_have_text("2 / 2")
        await expect(last_answer(page)).not_to_be_empty()
        await page.keyboard.press("Escape")
        await expect_ended(page)

        await question.press("ArrowUp")
        await page.get_by_role("textbox", name="Edit question").fill("Short [tokens=5 pace=0]")
        await page.keyboard.press("Enter")
        await expect_text(page, _plain("".join(expected_answer("Short [tokens=5 pace=0]"))))
        await expect(page.locator(".versions")).to_have_text("3 / 3")

        await page.reload()
        await expect(page.locator(".versions")).to_have_text("3 / 3")
        await page.locator("#conversations li").hover()
        await page.get_by_role("button", name="Rename").click()
        await page.get_by_label("Title of the conversation").fill("Short and endless")
        await page.keyboard.press("Enter")
        await expect(page.locator("#conversations a")).to_have_text("Short and endless")

        await page.locator("#conversations li").hover()
        await page.get_by_role("button", name="Delete").click()
        async with page.expect_response(lambda response: response.request.method == "DELETE") as erased:
            await page.get_by_role("button", name="Dismiss").click()
        assert (await erased.value).ok
        await page.reload()
        await expect(page.get_by_text("Your conversations will stand here.")).to_be_visible()


async def test_a_pdf_is_dropped_learned_asked_about_and_cited_and_a_name_is_known_until_it_is_forgotten(
    browser: Browser, services: Services, start_worker: StartWorker
) -> None:
    async with ModelServer() as model, await browser.new_context() as context:
        worker = await start_worker(services, OPENAI_BASE_URL=model.base_url, HEADRACE_RETRIEVAL="on")
        page = await context.new_page()
        await page.goto(worker.url)

        # Dropped, and watched until it is learned.
        await drop_file(page, "guide.pdf", "application/pdf", pdf("Warehouse guide", PORT))
        row = page.locator("#documents-list li")
        await expect(row).to_contain_text("guide.pdf")
        await expect(row).to_contain_text("Learned, 1 passage", timeout=LEARNING_MS)
        await page.keyboard.press("Escape")

        # Asked about, cited, and the passage behind the mark read.
        answer = quote("It listens on port 9092 [1].")
        await _say(page, f"Which port does the broker of the warehouse listen on? [pace=0 say={answer}]")
        await expect_text(page, "It listens on port 9092 1.")
        await last_answer(page).locator(".mark").click()
        await expect(page.locator("#passage-text")).to_contain_text(PORT)
        await page.keyboard.press("Escape")

        # Told in one conversation, known in the next.
        await page.get_by_role("button", name="New conversation", exact=True).first.click()
        await _say(page, "My name is Ann. [tokens=3 pace=0]")
        await _remembered(page, "The user's name is Ann.")
        await page.get_by_role("button", name="New conversation", exact=True).first.click()
        await _say(page, "Please greet me. [tokens=3 pace=0]")
        assert "The user's name is Ann." in _told(model)

        # Forgotten, and known no more.
        await page.get_by_role("button", name="Memory", exact=True).click()
        await page.locator("#memories-list li").get_by_role("button", name="Forget").click()
        await expect(page.locator("#memories-empty")).to_contain_text("Nothing yet")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="New conversation", exact=True).first.click()
        await _say(page, "Please greet me again. [tokens=3 pace=0]")
        assert "Ann" not in _told(model)


async def _say(page: Page, question: str) -> None:
    """Ask, and wait until it is answered."""
    await page.get_by_label("Question", exact=True).fill(question)
    await page.keyboard.press("Enter")
    await expect(last_answer(page)).not_to_be_empty()
    await expect_ended(page)


async def _remembered(page: Page, fact: str) -> None:
    """Look into what is remembered until it is just this, which is noted a moment after the answer."""
    memory = page.get_by_role("button", name="Memory", exact=True)
    async with asyncio.timeout(20):
        while True:
            async with page.expect_response("**/v1/me/memories"):
                await memory.click()
            await expect(page.locator("#memories-loading")).to_be_hidden()
            said = await page.locator("#memories-list li").all_inner_texts()
            await page.keyboard.press("Escape")
            if any(fact in each for each in said):
                return
            await asyncio.sleep(0.1)


def _told(model: ModelServer) -> str:
    """Return what stood before the last question."""
    return str(model.requests[-1]["messages"][:-1])


async def _more_of_the_answer(page: Page) -> None:
    """Wait until the page shows more than it does now."""
    length = len(await last_answer(page).inner_text())
    await page.wait_for_function("length => document.querySelector('.prose').innerText.length > length", arg=length)


async def _get(page: Page, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await page.evaluate("path => fetch(path).then(answer => answer.text())", path))
    return found


def _plain(text: str) -> str:
    """Return what Markdown's bold words look like."""
    return text.replace("**", "").strip()
