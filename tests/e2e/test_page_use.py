"""The page is usable with a keyboard alone, on a phone, in the dark, and keeps one's conversations in order."""

import re

import pytest
from playwright.async_api import Page, expect

from tests.e2e.acting import ask, expect_ended, expect_text
from tests.e2e.conftest import OpenPage
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}


async def test_a_conversation_can_be_had_with_the_keyboard_alone(page: Page, server: PageServer) -> None:
    keyboard = page.keyboard
    await expect(page.get_by_label("Question", exact=True)).to_be_focused()
    await keyboard.type("First line")
    await keyboard.press("Shift+Enter")
    await keyboard.type("second line")
    await keyboard.press("Enter")
    turn = await server.asked(1)
    assert turn.input == "First line\nsecond line"
    await turn.start()
    await turn.say("Some words")
    await expect_text(page, "Some words")
    await keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Stop the answer")).to_be_focused()
    await keyboard.press("Enter")
    await expect_ended(page)
    await expect(page.get_by_label("Question", exact=True)).to_be_focused()

    await keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Answer again")).to_be_focused()
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await keyboard.press("Enter")
    assert (await server.asked(2)).input == turn.input


async def test_the_first_tab_stop_skips_to_the_question(open_page: OpenPage) -> None:
    page = await open_page(**PHONE)  # where the box does not take the focus by itself
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the question box")).to_be_focused()
    await page.keyboard.press("Enter")

    await expect(page.get_by_label("Question", exact=True)).to_be_focused()


async def test_a_screen_reader_hears_the_end_and_not_every_word(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Speak")
    await turn.start()
    await turn.say("Many words")
    await expect_text(page, "Many words")

    live = page.locator("#turns").locator("xpath=ancestor-or-self::*[@aria-live or @role='log' or @role='status']")
    assert await live.count() == 0
    await expect(page.locator("#announcer")).to_have_text("Question sent.")
    await turn.complete()
    await expect(page.locator("#announcer")).to_have_text("The answer is complete.")


async def test_on_a_phone_the_list_is_a_drawer_and_nothing_is_wider_than_the_screen(
    open_page: OpenPage, server: PageServer
) -> None:
    server.add_conversation("Yesterday's question", days_ago=1)
    page = await open_page(**PHONE)
    turn = await ask(page, server, "A table, please")
    await turn.start()
    await turn.say(
        "| " + " | ".join("column" for _ in range(12)) + " |\n|" + "---|" * 12 + "\n\n```\n" + "x" * 300 + "\n```"
    )
    await turn.complete()
    await expect_ended(page)

    assert await page.evaluate("document.scrollingElement.scrollWidth") == 375
    assert await page.locator("#scroller").evaluate("element => element.scrollWidth - element.clientWidth") == 0
    await expect(page.get_by_label("Question", exact=True)).to_be_in_viewport()
    link = page.get_by_role("link", name="Yesterday's question")
    await expect(link).to_be_hidden()
    await page.get_by_role("button", name="Conversations").tap()
    await expect(link).to_be_in_viewport(ratio=1)
    await link.tap()
    await expect(link).to_be_hidden()
    await expect(page.locator("#title")).to_have_text("Yesterday's question")


async def test_the_drawer_closes_with_escape_and_gives_the_focus_back(open_page: OpenPage) -> None:
    page = await open_page(**PHONE)
    menu = page.get_by_role("button", name="Conversations")
    await menu.tap()
    await expect(page.get_by_role("button", name="Close the list")).to_be_focused()

    await page.keyboard.press("Escape")

    await expect(menu).to_be_focused()
    await expect(page.locator("#sidebar")).to_be_hidden()


async def test_the_theme_follows_the_system_until_another_is_chosen(open_page: OpenPage) -> None:
    page = await open_page(color_scheme="dark")
    dark = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    button = page.get_by_role("button", name="Theme")

    await button.click()
    light = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    await page.reload()

    assert (dark, light) == ("rgb(16, 22, 24)", "rgb(250, 249, 245)")
    assert await page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == light
    await expect(button).to_have_attribute("aria-label", "Theme: light. Change it")


async def test_conversations_are_listed_by_day_and_the_open_one_is_marked(
    open_page: OpenPage, server: PageServer
) -> None:
    for title, days in (("Old", 3), ("Older", 12), ("New", 0), ("Yesterday", 1)):
        server.add_conversation(title, days_ago=days)
    page = await open_page()
    await page.get_by_role("link", name="Old", exact=True).click()

    groups = page.locator("#conversations section")
    assert await groups.locator("h3").all_inner_texts() == ["Today", "Yesterday", "Last 7 days", "Last 30 days"]
    assert await groups.locator("a").all_inner_texts() == ["New", "Yesterday", "Old", "Older"]
    await expect(page.locator("[aria-current]")).to_have_text("Old")
    await page.go_back()
    await expect(page.locator("[aria-current]")).to_have_count(0)


async def test_a_conversation_is_renamed_in_place(open_page: OpenPage, server: PageServer) -> None:
    server.add_conversation("Untitled")
    page = await open_page()
    await page.get_by_role("link", name="Untitled").focus()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")

    await page.get_by_label("Title of the conversation").fill("Watermarks")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("link", name="Watermarks")).to_be_focused()
    await server.until(lambda: server.conversations["c1"]["title"] == "Watermarks")


async def test_a_deleted_conversation_can_be_brought_back_until_its_notice_goes(
    open_page: OpenPage, server: PageServer
) -> None:
    server.add_conversation("Keep me")
    page = await open_page()
    link = page.get_by_role("link", name="Keep me")
    await link.hover()
    await page.get_by_role("button", name="Delete “Keep me”").click()
    await expect(link).to_have_count(0)
    await page.get_by_role("button", name="Undo").click()
    await expect(link).to_be_visible()
    assert server.sent("DELETE .*") == []

    await link.hover()
    await page.get_by_role("button", name="Delete “Keep me”").click()
    await page.get_by_role("button", name="Dismiss").click()

    await server.until(lambda: not server.conversations)
    await page.reload()
    await expect(page.get_by_text("Your conversations will stand here.")).to_be_visible()


async def test_leaving_the_page_carries_a_deletion_out(open_page: OpenPage, server: PageServer) -> None:
    server.add_conversation("Go")
    page = await open_page()
    await page.get_by_role("link", name="Go").hover()
    await page.get_by_role("button", name="Delete “Go”").click()

    await page.goto("about:blank")

    await server.until(lambda: not server.conversations)


async def test_an_example_fills_the_box_and_a_draft_outlives_a_reload(page: Page) -> None:
    await page.get_by_role("button", name="Gaps in a table").click()
    field = page.get_by_label("Question", exact=True)
    await expect(field).to_have_value(re.compile("missing from a table"))
    await expect(field).to_be_focused()

    await page.reload()

    await expect(field).to_have_value(re.compile("missing from a table"))


async def test_an_answer_and_a_code_block_can_be_copied(open_page: OpenPage, server: PageServer) -> None:
    page = await open_page(permissions=["clipboard-read", "clipboard-write"])
    turn = await ask(page, server, "Code")
    await turn.start()
    await turn.say("Here:\n\n```python\nprint('x')  # one\n```\n")
    await turn.complete()
    await expect_ended(page)

    await page.get_by_role("button", name="Copy code").click()
    assert await page.evaluate("navigator.clipboard.readText()") == "print('x')  # one"
    await page.get_by_role("button", name="Copy answer").click()
    assert await page.evaluate("navigator.clipboard.readText()") == turn.text


async def test_another_conversation_can_be_read_while_an_answer_comes(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Slow question")
    await turn.start()
    await turn.say("one ")
    await expect_text(page, "one")

    await page.get_by_role("button", name="New conversation").first.click()
    await expect(page.locator(".turn")).to_have_count(0)
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await turn.say("two ")
    await page.get_by_role("link", name="Slow question").click()
    await turn.say("three")
    await turn.complete()

    await expect_text(page, "one two three")
