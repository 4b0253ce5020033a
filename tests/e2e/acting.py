"""What a person does on the page, and what they see there."""

from playwright.async_api import Locator, Page, expect

from tests.support.page_server import PageServer, Turn


async def ask(page: Page, server: PageServer, question: str) -> Turn:
    """Type a question, send it with Enter, and return its turn as the server got it."""
    number = len(server.turns) + 1
    await page.get_by_label("Question", exact=True).fill(question)
    await page.keyboard.press("Enter")
    return await server.asked(number)


async def drop_file(page: Page, name: str, media_type: str, data: bytes) -> None:
    """Drag a file over the page, and let it go."""
    drop = """([name, type, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type }));
        for (const kind of ["dragenter", "drop"]) {
            document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        }
    }"""
    await page.evaluate(drop, [name, media_type, list(data)])


def last_answer(page: Page) -> Locator:
    """The text of the newest answer."""
    return page.locator(".turn .prose").last


async def expect_text(page: Page, text: str) -> None:
    """Wait until the newest answer shows exactly this."""
    await expect(last_answer(page)).to_have_text(text)


async def expect_ended(page: Page) -> None:
    """Wait until no answer is coming any more."""
    await expect(page.locator('.answer[aria-busy="true"]')).to_have_count(0)


def words(first: int, last: int) -> str:
    """Numbered words, so that a lost or doubled one is seen."""
    return "".join(f"w{number} " for number in range(first, last))
