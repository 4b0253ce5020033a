"""Everything that was ever asked can be read to the first word, and recent things also while the archive is away."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.conftest import OpenPage
from tests.support.page_server import PageServer, Turn

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONVERSATIONS, TURNS, RECENT = 40, 60, 5


async def with_past(server: PageServer) -> str:
    """Fill a server; return the id of the conversation with many turns, which is the latest."""
    for number in range(1, CONVERSATIONS):
        server.add_conversation(f"Conversation {number}", days_ago=CONVERSATIONS - number)
    conversation = server.add_conversation("The long one")["id"]
    await server.add_past(conversation, TURNS)
    return str(conversation)


async def top_of(page: Page, question: str) -> float:
    """Return where a question stands on the screen."""
    box = await page.locator(".question-text", has_text=question).bounding_box()
    assert box is not None
    return box["y"]


async def scroll_to_the_top(page: Page) -> None:
    """Scroll up as a person does: until nothing more comes."""
    while not await page.locator("#scroller").evaluate(
        "scroller => scroller.scrollTop === 0 && document.getElementById('older').hidden"
    ):
        await page.locator("#scroller").hover()
        await page.mouse.wheel(0, -2000)
        await page.wait_for_timeout(20)


async def test_scrolling_up_leads_to_the_first_question_and_keeps_the_order(
    open_page: OpenPage, server: PageServer
) -> None:
    conversation = await with_past(server)
    page = await open_page(f"/#/c/{conversation}")
    await expect(page.get_by_text(f"Question {TURNS}?")).to_be_in_viewport()
    assert await page.locator(".turn").count() < TURNS

    await scroll_to_the_top(page)

    await expect(page.get_by_text("Question 1?", exact=True)).to_be_in_viewport()
    questions = await page.locator(".question-text").all_inner_texts()
    assert questions == [f"Question {number}?" for number in range(1, TURNS + 1)]


async def test_what_is_read_stays_where_it_is_while_earlier_turns_come_in_at_the_second_try(
    open_page: OpenPage, server: PageServer
) -> None:
    conversation = await with_past(server)
    page = await open_page(f"/#/c/{conversation}")
    await expect(page.locator(".turn")).to_have_count(30)
    await expect(page.get_by_text("Answer 31.")).to_be_attached()
    server.refuse(f"GET /v1/conversations/{conversation}", 400, message="not yet")
    await page.get_by_role("button", name="Show earlier questions").scroll_into_view_if_needed()
    await expect(page.get_by_text("Older questions and answers could not be loaded.")).to_be_visible()
    before = await top_of(page, "Question 31?")
    assert 0 <= before < 720

    await page.locator("#older").get_by_role("button", name="Try again").click()
    await expect(page.locator(".turn")).to_have_count(60)
    await expect(page.get_by_text("Answer 1.", exact=True)).to_be_attached()

    assert await top_of(page, "Question 31?") == pytest.approx(before, abs=2)


async def test_earlier_turns_can_be_had_with_the_keyboard_and_are_announced(
    open_page: OpenPage, server: PageServer
) -> None:
    conversation = server.add_conversation("The long one")["id"]
    for number in range(1, 33):
        turn: Turn = await server.add_turn(conversation, f"Q{number}")
        await turn.start()
        await turn.complete()
    page = await open_page(f"/#/c/{conversation}")
    await expect(page.locator(".turn")).to_have_count(30)

    more = page.get_by_role("button", name="Show earlier questions")
    await more.focus()
    await page.keyboard.press("Enter")

    await expect(page.locator(".turn")).to_have_count(32)
    await expect(page.locator("#announcer")).to_have_text("2 earlier questions are shown.")
    await expect(more).to_be_hidden()
    await expect(page.locator("#scroller")).to_be_focused()


async def test_an_edit_of_a_question_from_long_ago_is_beside_it_once_that_is_loaded(
    open_page: OpenPage, server: PageServer
) -> None:
    conversation = server.add_conversation("Branches")["id"]
    await server.add_past(conversation, 40)
    asked = list(server.turns.values())
    edited = await server.add_turn(conversation, "Question 2, otherwise?", parent=asked[0].turn_id)
    await edited.start()
    await edited.complete()
    page = await open_page(f"/#/c/{conversation}")

    questions = page.locator(".question-text")
    await expect(questions).to_have_text(["Question 2, otherwise?"])
    await page.get_by_role("button", name="Show earlier questions").click()

    await expect(questions).to_have_text(["Question 1?", "Question 2, otherwise?"])
    await expect(page.locator(".versions")).to_have_text("2 / 2")


async def test_all_conversations_are_in_the_list_part_by_part(open_page: OpenPage, server: PageServer) -> None:
    await with_past(server)
    page = await open_page()
    titles = page.locator("#conversations a.title")
    await expect(titles).to_have_count(30)

    await page.get_by_role("button", name="Show earlier ones").click()

    await expect(titles).to_have_count(CONVERSATIONS)
    await expect(page.get_by_role("button", name="Show earlier ones")).to_be_hidden()
    expected = ["The long one", *(f"Conversation {number}" for number in range(CONVERSATIONS - 1, 0, -1))]
    assert await titles.all_inner_texts() == expected
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as another tab was looked at
    await server.until(lambda: len(server.sent("GET /v1/conversations")) == 3)
    await expect(titles).to_have_count(CONVERSATIONS)


async def test_while_the_archive_is_away_recent_things_are_there_and_a_quiet_line_says_so(
    open_page: OpenPage, server: PageServer
) -> None:
    conversation = await with_past(server)
    server.archive_down = True
    page = await open_page(f"/#/c/{conversation}")

    await expect(page.locator(".turn")).to_have_count(RECENT)
    await expect(page.locator("#conversations a.title")).to_have_count(RECENT)
    await expect(page.get_by_text("Older questions and answers cannot be shown right now.")).to_be_attached()
    await expect(page.get_by_text("Older conversations cannot be shown right now.")).to_be_visible()
    assert await page.get_by_role("alert").filter(visible=True).count() == 0
    again = page.locator("#older").get_by_role("button", name="Try again")
    await again.click()
    await expect(again).to_be_visible()

    server.archive_down = False
    await again.click()
    await scroll_to_the_top(page)
    await expect(page.locator(".turn")).to_have_count(TURNS)
    await page.locator("#list-older").get_by_role("button", name="Try again").click()
    await expect(page.get_by_text("Older conversations cannot be shown right now.")).to_be_hidden()
    await page.get_by_role("button", name="Show earlier ones").click()
    await expect(page.locator("#conversations a.title")).to_have_count(CONVERSATIONS)
