"""Under an answer one can say what it was like, with a pointer, a keyboard or a thumb, and see what one has said."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.acting import ask, expect_ended
from tests.e2e.conftest import OpenPage
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
ROUTE = r"POST /v1/turns/t1/feedback"


async def answered(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Why?")
    await turn.start()
    await turn.say("Because of the wheel.")
    await expect(page.get_by_role("group", name="Feedback")).to_have_count(0)
    await turn.complete()
    await expect_ended(page)


def said(server: PageServer) -> list[tuple[int, str | None]]:
    return [(body["rating"], body.get("comment")) for body in server.sent(ROUTE)]


async def expect_pressed(page: Page, up: bool, down: bool) -> None:
    for name, pressed in (("Good answer", up), ("Bad answer", down)):
        button = page.get_by_role("button", name=name)
        await expect(button).to_have_attribute("aria-pressed", str(pressed).lower())


async def test_a_thumb_is_given_and_changed_and_words_are_added(page: Page, server: PageServer) -> None:
    await answered(page, server)
    await expect_pressed(page, up=False, down=False)

    await page.get_by_role("button", name="Good answer").click()
    await expect(page.get_by_label("What was good?")).to_be_visible()
    await expect_pressed(page, up=True, down=False)
    await page.get_by_role("button", name="Bad answer").click()
    await page.get_by_label("What was wrong?").fill("It is the <b>race</b>.")
    await page.locator(".feedback").get_by_role("button", name="Send").click()

    await expect(page.locator(".feedback")).to_have_text("Thank you.")
    await expect_pressed(page, up=False, down=True)
    assert said(server) == [(1, None), (-1, None), (-1, "It is the <b>race</b>.")]


async def test_it_is_done_with_the_keyboard_alone_and_heard(page: Page, server: PageServer) -> None:
    await answered(page, server)

    await page.get_by_role("button", name="Bad answer").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#announcer")).to_have_text("Thank you. You can say more in the box below the answer.")
    await page.get_by_label("What was wrong?").focus()
    await page.keyboard.press("Escape")
    await expect(page.locator(".feedback")).to_be_hidden()
    await expect(page.get_by_role("button", name="Bad answer")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.get_by_label("What was wrong?").focus()
    await page.keyboard.type("No.")
    await page.keyboard.press("Enter")

    await expect(page.locator(".feedback").get_by_role("status")).to_have_text("Thank you.")
    await expect(page.get_by_role("button", name="Bad answer")).to_be_focused()
    assert said(server) == [(-1, None), (-1, "No.")]


@pytest.mark.parametrize("archive_down", [False, True], ids=["archived", "not yet archived"])
async def test_what_was_said_is_there_after_a_reload(page: Page, server: PageServer, archive_down: bool) -> None:
    server.archive_down = archive_down
    await answered(page, server)
    await page.get_by_role("button", name="Good answer").click()
    await expect(page.get_by_label("What was good?")).to_be_visible()
    if not archive_down:
        await page.evaluate("sessionStorage.removeItem('headrace.feedback')")

    await page.reload()

    await expect_pressed(page, up=True, down=False)
    await expect(page.locator(".feedback")).to_be_hidden()


async def test_what_could_not_be_saved_is_said_and_can_be_tried_again(page: Page, server: PageServer) -> None:
    await answered(page, server)
    server.refuse(ROUTE, 404, message="there is no such turn")

    await page.get_by_role("button", name="Good answer").click()
    await expect(page.locator(".feedback")).to_contain_text("Not saved.")
    await expect_pressed(page, up=False, down=False)
    await page.get_by_role("button", name="Good answer").click()
    await page.get_by_label("What was good?").fill("All of it")
    server.refuse(ROUTE, 429, message="slower", headers={"Retry-After": "1"})
    await page.keyboard.press("Enter")

    await expect(page.locator(".feedback")).to_contain_text("Not saved.")
    await expect(page.get_by_label("What was good?")).to_have_value("All of it")
    await page.keyboard.press("Enter")
    await expect(page.locator(".feedback")).to_have_text("Thank you.")
    assert said(server)[-1] == (1, "All of it")


async def test_a_server_that_is_away_for_a_moment_is_no_news(page: Page, server: PageServer) -> None:
    await answered(page, server)
    server.refuse(ROUTE, 503, headers={"Retry-After": "0"})

    await page.get_by_role("button", name="Good answer").click()

    await expect(page.get_by_label("What was good?")).to_be_visible()
    await expect(page.locator(".feedback")).not_to_contain_text("Not saved.")


async def test_on_a_phone_it_fits_and_can_be_hit(open_page: OpenPage, server: PageServer) -> None:
    page = await open_page(**PHONE)
    await answered(page, server)

    await page.get_by_role("button", name="Bad answer").tap()
    field = page.get_by_label("What was wrong?")
    await expect(field).to_be_visible()

    box = await field.bounding_box()
    thumb = await page.get_by_role("button", name="Bad answer").bounding_box()
    assert box is not None
    assert thumb is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 375
    assert min(thumb["width"], thumb["height"]) >= 40
    assert await page.evaluate("document.scrollingElement.scrollWidth") == 375
