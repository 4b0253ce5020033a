"""An answer arrives in the page word by word, and none of it is lost or doubled, whatever happens on the way."""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.e2e.acting import ask, expect_ended, expect_text, last_answer, words
from tests.e2e.conftest import OpenPage
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = (Path(__file__).parents[1] / "data" / "answer.md").read_text()


async def test_an_answer_is_shown_while_it_grows_and_equals_the_log_at_the_end(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "What is a watermark?")
    await turn.start()
    await turn.say("A watermark says ")

    await expect_text(page, "A watermark says")
    await expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")

    await turn.say("how far time has come.")
    await turn.complete()
    await expect_ended(page)
    await expect_text(page, turn.text)
    await expect(page.locator(".turn-footer")).to_contain_text("scripted-1 · 1.8 s")
    await expect(page.locator("#announcer")).to_have_text("The answer is complete.")


async def test_markdown_that_grew_piece_by_piece_is_the_same_as_markdown_rendered_at_once(
    page: Page, server: PageServer
) -> None:
    turn = await ask(page, server, "Find the gaps")
    await turn.start()
    await turn.say(ANSWER)
    await turn.complete()
    await expect_ended(page)
    await expect(page.locator(".code")).to_have_count(2)
    grown = await last_answer(page).inner_html()

    await page.reload()
    await expect(page.locator(".code")).to_have_count(2)

    assert await last_answer(page).inner_html() == grown
    assert [await label.inner_text() for label in await page.locator(".code-bar > span").all()] == ["sql", "python"]
    await expect(page.locator(".table td").last).to_have_css("text-align", "right")


async def test_a_browser_that_loses_its_connection_ten_times_shows_exactly_the_text_of_the_log(
    page: Page, server: PageServer
) -> None:
    turn = await ask(page, server, "Count to two hundred")
    await turn.start()
    for part in range(10):
        await server.followed()
        await turn.say(words(part * 20, part * 20 + 20))
        if part % 2:  # else it breaks while the words are on their way
            await expect(last_answer(page)).to_contain_text(f"w{part * 20 + 19}")
        assert server.drop() == 1
    await turn.complete()

    await expect_ended(page)
    await expect_text(page, words(0, 200).strip())
    assert len(server.connections) == 11


async def test_a_reload_in_mid_answer_shows_all_of_it(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say(words(0, 10))
    await expect(last_answer(page)).to_contain_text("w9")

    await page.reload()
    await expect(last_answer(page)).to_contain_text("w9")
    await turn.say(words(10, 20))
    await turn.complete()

    await expect_ended(page)
    await expect_text(page, words(0, 20).strip())
    await expect(page.locator(".turn")).to_have_count(1)


async def test_a_reload_finds_the_answer_although_the_servers_lists_lag_behind(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say(words(0, 10))
    await expect(page).to_have_url(f"{server.url}/#/c/{turn.conversation_id}")
    server.lagging = True

    await page.reload()
    await turn.say(words(10, 20))
    await turn.complete()

    await expect_text(page, words(0, 20).strip())
    await expect(page.locator(".question-text")).to_have_text("Count")


async def test_an_answer_that_went_on_elsewhere_is_complete_in_a_second_tab(
    page: Page, open_page: OpenPage, server: PageServer
) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say(words(0, 10))

    other = await open_page(f"/#/c/{turn.conversation_id}")
    await turn.say(words(10, 20))
    await turn.complete()

    await expect_text(page, words(0, 20).strip())
    await expect_text(other, words(0, 20).strip())


async def test_a_question_whose_acceptance_is_not_heard_is_sent_again_and_asked_once(
    page: Page, server: PageServer
) -> None:
    server.refuse("POST /v1/conversations/.*/turns", 0, after=True)

    turn = await ask(page, server, "Once, please")
    await server.until(lambda: len(server.sent("POST /v1/conversations/.*/turns")) == 2)
    await turn.start()
    await turn.say("Once.")
    await turn.complete()

    await expect_text(page, "Once.")
    first, second = server.sent("POST /v1/conversations/.*/turns")
    assert first == second
    assert len(server.turns) == 1


async def test_a_question_that_was_on_its_way_during_a_reload_is_asked_once(page: Page, server: PageServer) -> None:
    first = await ask(page, server, "Hello")
    await first.start()
    await first.complete()
    await expect_ended(page)
    server.refuse("POST /v1/conversations/.*/turns", 503, times=2)
    await page.get_by_label("Question", exact=True).fill("Once, please")
    await page.keyboard.press("Enter")
    await server.until(lambda: len(server.sent("POST /v1/conversations/.*/turns")) == 2)

    await page.reload()
    turn = await server.asked(2)
    await turn.start()
    await turn.say("Once.")
    await turn.complete()

    await expect_text(page, "Once.")
    _, lost, *later = server.sent("POST /v1/conversations/.*/turns")
    assert all(again == lost for again in later)
    assert len(server.turns) == 2


@pytest.mark.parametrize("way", ["button", "Escape"])
async def test_stop_ends_the_answer_and_keeps_what_there_is(page: Page, server: PageServer, way: str) -> None:
    turn = await ask(page, server, "Count for ever")
    await turn.start()
    await turn.say(words(0, 5))
    await expect(last_answer(page)).to_contain_text("w4")

    if way == "button":
        await page.get_by_role("button", name="Stop the answer").click()
    else:
        await page.keyboard.press("Escape")

    await expect_ended(page)
    assert turn.status == "stopped"
    await expect_text(page, words(0, 5).strip())
    await expect(page.locator(".status")).to_contain_text("Stopped.")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.get_by_label("Question", exact=True)).to_be_focused()


async def test_answering_again_keeps_both_versions(page: Page, server: PageServer) -> None:
    first = await ask(page, server, "Pick a number")
    await first.start()
    await first.say("Three.")
    await first.complete()

    await page.get_by_role("button", name="Answer again").click()
    second = await server.asked(2)
    await second.start()
    await second.say("Seven.")
    await second.complete()

    await expect_text(page, "Seven.")
    await expect(page.locator(".versions")).to_have_text("2 / 2")
    await page.get_by_role("button", name="Earlier version").click()
    await expect_text(page, "Three.")
    await page.reload()
    await expect_text(page, "Seven.")
    await expect(page.locator(".turn")).to_have_count(1)


async def test_the_last_question_can_be_edited(page: Page, server: PageServer) -> None:
    first = await ask(page, server, "What is a wattermark?")
    await first.start()
    await first.stop()
    await expect_ended(page)

    await page.get_by_label("Question", exact=True).press("ArrowUp")
    await page.get_by_role("textbox", name="Edit question").fill("What is a watermark?")
    await page.keyboard.press("Enter")
    second = await server.asked(2)
    await second.start()
    await second.say("A point in time.")
    await second.complete()

    await expect_text(page, "A point in time.")
    await expect(page.locator(".question-text")).to_have_text("What is a watermark?")
    assert second.parent == first.parent


async def test_waiting_and_thinking_are_said_after_a_second(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Think")

    await expect(page.locator(".status")).to_contain_text("Waiting… 1 s")
    await turn.start()
    await expect(page.locator(".status")).to_contain_text("Thinking…")
    await turn.say("Thought.")
    await expect(page.locator(".status")).to_be_hidden()


async def test_a_short_break_is_not_mentioned_and_a_long_one_is(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say("one ")
    await expect_text(page, "one")
    status = page.locator(".status")
    await page.clock.install()

    server.refuse("GET /v1/turns/.*", 503, times=100)
    server.drop()
    await page.clock.run_for(4500)
    await expect(status).to_be_hidden()
    await page.clock.run_for(1500)
    await expect(status).to_have_text("Continuing…")
    await page.clock.run_for(6000)
    await expect(status).to_have_text("Reconnecting…")
    server.refusals.clear()
    await page.clock.resume()
    await turn.say("two")
    await expect(status).to_be_hidden()
    await turn.complete()

    await expect_text(page, "one two")


async def test_an_answer_that_pauses_on_an_open_connection_is_said_to_continue(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say("one ")
    await expect_text(page, "one")
    status = page.locator(".status")

    await page.clock.install()
    await page.clock.run_for(4500)
    await expect(status).to_be_hidden()
    await page.clock.run_for(1500)
    await expect(status).to_have_text("Continuing…")
    await page.clock.resume()
    await turn.say("two")

    await expect(status).to_be_hidden()


async def test_the_page_follows_the_answer_until_the_reader_scrolls_up(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "A long one")
    await turn.start()
    await turn.say("\n\n".join(f"paragraph {number}" for number in range(60)))
    await expect(page.get_by_text("paragraph 59")).to_be_in_viewport()

    await page.locator("#turns").hover()
    await page.mouse.wheel(0, -600)
    await expect(page.get_by_role("button", name="Jump to latest")).to_be_visible()
    before = await page.locator("#scroller").evaluate("element => element.scrollTop")
    await turn.say("\n\nparagraph 60\n\nparagraph 61")
    await expect(page.get_by_text("paragraph 61")).to_be_attached()
    assert await page.locator("#scroller").evaluate("element => element.scrollTop") == before

    await page.get_by_role("button", name="Jump to latest").click()
    await expect(page.get_by_text("paragraph 61")).to_be_in_viewport()
    await turn.say("\n\nparagraph 62")
    await expect(page.get_by_text("paragraph 62")).to_be_in_viewport()
