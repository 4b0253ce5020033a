"""The page on a real worker: from the browser through Kafka to the model and back."""

import json
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.conftest import StartWorker
from tests.e2e.acting import expect_ended, expect_text, last_answer
from tests.support.cut_line import CutLine
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
