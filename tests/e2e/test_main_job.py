"""The main job, as a newcomer meets it: `make up`, a question in the page, a real model's answer."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from deploy.embedded import free_port
from tests.e2e.acting import last_answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]
QUESTION = "Explain what a Kafka consumer group is, with a short Python example."
# Where to keep a picture of the page in the middle of the answer, for the README.
PICTURE = os.environ.get("HEADRACE_TEST_PICTURE")


@pytest_asyncio.fixture(loop_scope="session")
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """The page of everything that `make up` starts."""
    port = free_port()
    given = {"KAFKA_BOOTSTRAP_SERVERS", "ELASTICSEARCH_URL", "DATABASE_URL", "OPENAI_BASE_URL"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.up", "--port", str(port), "--folder", str(tmp_path / "up")),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in given},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = []
    try:
        async with asyncio.timeout(120):
            async for line in process.stdout:
                said.append(line.decode())
                if f"http://127.0.0.1:{port}" in said[-1]:
                    break
            else:
                pytest.fail("make up ended:\n" + "".join(said))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 0


async def test_a_question_in_the_page_is_answered_by_a_real_model_through_kafka(browser: Browser, address: str) -> None:
    async with await browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = await context.new_page()
        await page.goto(address)
        await page.get_by_label("Question", exact=True).fill(QUESTION)
        async with page.expect_response("**/turns") as accepted:
            await page.keyboard.press("Enter")
        turn_id = (await (await accepted.value).json())["turn_id"]
        await expect(last_answer(page)).not_to_be_empty(timeout=60_000)
        if PICTURE:
            await expect(last_answer(page).locator("pre code")).not_to_be_empty(timeout=60_000)
            await page.screenshot(path=PICTURE)
        await expect(page.locator('.answer[aria-busy="true"]')).to_have_count(0, timeout=120_000)

        async with aiohttp.ClientSession() as session, session.get(f"{address}/v1/turns/{turn_id}") as answer:
            turn = await answer.json()
        assert turn["status"] == "completed"
        assert turn["usage"]["output_tokens"] > 20
        # The page has copied what it received as it received it, before any rendering.
        await context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy answer").click()
        assert await page.evaluate("navigator.clipboard.readText()") == turn["answer"]
