"""When something goes wrong, the page says what happened and what to do, and the question is never lost."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.acting import ask, expect_ended, expect_text
from tests.e2e.conftest import OpenPage
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TURNS = "POST /v1/conversations/.*/turns"


async def send(page: Page, question: str) -> None:
    await page.get_by_label("Question", exact=True).fill(question)
    await page.keyboard.press("Enter")


async def test_a_server_that_asks_for_a_key_gets_it_and_the_question_goes_on(
    open_page: OpenPage, server: PageServer
) -> None:
    server.key = "correct-horse-battery"
    page = await open_page()

    await page.get_by_label("Access key").fill("correct-horse-battery")
    await page.keyboard.press("Enter")
    await expect(page.locator("#who")).to_have_text("dev")
    turn = await ask(page, server, "Who am I?")
    await turn.start()
    await turn.say("The user dev.")
    await turn.complete()

    await expect_text(page, "The user dev.")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("dialog")).to_be_visible()


async def test_without_a_key_the_page_says_so_and_offers_to_try_again(open_page: OpenPage, server: PageServer) -> None:
    server.key = "correct-horse-battery"
    page = await open_page()
    await page.get_by_role("button", name="Not now").click()

    await send(page, "Who am I?")
    await page.get_by_role("button", name="Not now").click()

    await expect(page.get_by_role("alert").filter(has_text="Not sent")).to_contain_text("You are not signed in.")
    await expect(page.get_by_role("button", name="Try again")).to_be_enabled()


async def test_a_limit_is_counted_down_and_the_question_sent_again_under_its_key(
    page: Page, server: PageServer
) -> None:
    server.refuse(TURNS, 429, headers={"Retry-After": "2"}, message="10 questions a minute are allowed")

    await send(page, "One too many")
    box = page.get_by_role("alert").filter(has_text="Not sent")
    await expect(box).to_contain_text("10 questions a minute are allowed.")
    await expect(page.get_by_role("button", name="Try again in")).to_be_disabled()
    await page.get_by_role("button", name="Try again", exact=True).click()
    turn = await server.asked(1)
    await turn.start()
    await turn.say("Now it goes.")
    await turn.complete()

    await expect_text(page, "Now it goes.")
    await expect(box).to_have_count(0)
    first, second = server.sent(TURNS)
    assert first == second


async def test_a_question_that_is_too_long_comes_back_to_be_changed(page: Page, server: PageServer) -> None:
    server.refuse(TURNS, 413, message="at most 1 MB, this is 2 MB")

    await send(page, "A very long question")
    await expect(page.get_by_role("alert").filter(has_text="Not sent")).to_contain_text("too long")
    await expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    await page.get_by_role("button", name="Change the question").click()

    await expect(page.get_by_label("Question", exact=True)).to_have_value("A very long question")
    await expect(page.locator(".turn")).to_have_count(0)


async def test_a_server_that_is_not_ready_for_a_moment_is_asked_again_by_itself(page: Page, server: PageServer) -> None:
    server.refuse(TURNS, 503, times=2, headers={"Retry-After": "0"})

    turn = await ask(page, server, "Are you there?")
    await turn.start()
    await turn.say("Now I am.")
    await turn.complete()

    await expect_text(page, "Now I am.")
    assert len({request["key"] for request in server.sent(TURNS)}) == 1


async def test_without_a_network_the_question_waits_with_a_button(page: Page, server: PageServer) -> None:
    await expect(page.locator("#who")).to_have_text("dev")
    await page.clock.install()
    await page.context.set_offline(True)

    await send(page, "Hello?")
    box = page.get_by_role("alert").filter(has_text="Not sent")
    for _ in range(12):  # the page tries some times by itself, further and further apart
        await page.clock.run_for(1000)
    await expect(box).to_contain_text("The server cannot be reached. Check your connection")
    await page.context.set_offline(False)
    await page.clock.resume()
    await page.get_by_role("button", name="Try again").click()

    turn = await server.asked(1)
    assert turn.input == "Hello?"


async def test_a_failed_turn_says_why_and_can_be_asked_again(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Break")
    await turn.start()
    await turn.say("So far")
    await turn.fail("the model stalled for 60 s")

    box = page.get_by_role("alert").filter(has_text="broke off")
    await expect(box).to_contain_text("The answer broke off. The model stalled for 60 s.")
    await expect_text(page, "So far")
    await box.get_by_role("button", name="Try again").click()
    again = await server.asked(2)
    await again.start()
    await again.say("So far, so good.")
    await again.complete()

    await expect_text(page, "So far, so good.")


async def test_a_turn_whose_events_are_refused_for_good_can_be_followed_again(page: Page, server: PageServer) -> None:
    server.refuse("GET /v1/turns/.*", 404, message="there is no such turn")

    turn = await ask(page, server, "Where are you?")
    await expect(page.get_by_role("alert").filter(has_text="not there")).to_contain_text("There is no such turn.")
    await page.get_by_role("button", name="Try again").click()
    await turn.start()
    await turn.say("Here.")
    await turn.complete()

    await expect_text(page, "Here.")


async def test_a_stop_that_does_not_get_through_is_said_and_can_be_repeated(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Count")
    await turn.start()
    await turn.say("one")
    server.refuse("POST /v1/turns/.*/stop", 403)

    await page.get_by_role("button", name="Stop the answer").click()
    await expect(page.locator("#notices")).to_contain_text("You may not do this.")
    await page.get_by_role("button", name="Stop the answer").click()

    await expect_ended(page)
    assert turn.status == "stopped"


async def test_while_the_group_shares_out_its_work_the_page_shows_nothing_unusual(
    open_page: OpenPage, server: PageServer
) -> None:
    server.add_conversation("Yesterday's question")
    server.refuse("GET /v1/conversations", 503, headers={"Retry-After": "0"})
    page = await open_page()
    await expect(page.get_by_role("link", name="Yesterday's question")).to_be_visible()

    server.refuse(TURNS, 503, headers={"Retry-After": "0"})
    turn = await ask(page, server, "Are you there?")
    await turn.start()
    await turn.say("Yes.")
    server.refuse("GET /v1/turns/.*", 503)
    server.drop()
    server.refuse("POST /v1/turns/.*/stop", 503)
    await page.get_by_role("button", name="Stop the answer").click()

    await expect_ended(page)
    assert turn.status == "stopped"
    assert [refusal.times for refusal in server.refusals] == [0] * 4
    await expect(page.get_by_role("alert").filter(visible=True)).to_have_count(0)
    await expect(page.locator("#list-problem")).to_be_hidden()
    await expect(page.locator("#notices")).to_be_empty()


async def test_a_conversation_that_is_gone_is_said_to_be(open_page: OpenPage) -> None:
    page = await open_page("/#/c/none")

    await expect(page.get_by_role("alert").filter(has_text="not there any more")).to_be_visible()
    await page.locator("#thread-problem").get_by_role("button", name="New conversation").click()

    await expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()


async def test_a_list_that_cannot_be_shown_can_be_asked_for_again(open_page: OpenPage, server: PageServer) -> None:
    server.add_conversation("Yesterday's question")
    server.refuse("GET /v1/conversations", 403)
    page = await open_page()

    await expect(page.locator("#list-problem")).to_contain_text("The list cannot be shown. You may not do this.")
    await page.locator("#list-again").click()

    await expect(page.get_by_role("link", name="Yesterday's question")).to_be_visible()
