"""What a model writes is text: it cannot run, load, or lead anywhere that the reader did not choose."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.acting import ask, expect_ended, last_answer
from tests.support.page_server import PageServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<svg onload='window.hacked = 3'><a href='javascript:window.hacked = 4'>svg</a></svg>",
    "[a](javascript:window.hacked=5) [b](JaVaScRiPt:window.hacked=6) [c](&#106;avascript:window.hacked=7)",
    "[d](data:text/html,<script>window.hacked=8</script>) [e](vbscript:window.hacked)",
    "![f](https://example.invalid/pixel.png?secret=1) ![g](/v1/me)",
    '[h](https://example.invalid/" onmouseover="window.hacked=9)',
    "<iframe srcdoc='<script>parent.hacked = 10</script>'></iframe>",
    "<style>body { display: none }</style> <base href='https://example.invalid/'>",
    "<form action='https://example.invalid/'><input name=key><button>Go</button></form>",
    '```"><img src=x onerror=window.hacked=11>\ncode </code></pre><script>window.hacked = 12</script>\n```',
    "| a | b |\n|---|---|\n| <img src=x onerror=window.hacked=13> | <b onclick='window.hacked = 14'>x</b> |",
    "<details open ontoggle='window.hacked = 15'><summary>s</summary></details>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=16></style></mglyph></table></mtext></math>",
    "<https://example.invalid/ok> and https://example.invalid/auto",
]


async def test_attacks_in_an_answer_do_nothing_and_load_nothing(page: Page, server: PageServer) -> None:
    outside: list[str] = []
    page.on("request", lambda request: outside.extend([request.url] * (not request.url.startswith(server.url))))
    turn = await ask(page, server, "<img src=x onerror='window.hacked = 20'>")
    await turn.start()
    for attack in ATTACKS:
        await turn.say(f"{attack}\n\n")
    await turn.complete()
    await expect_ended(page)
    await expect(last_answer(page)).to_contain_text("https://example.invalid/auto")
    for link in await last_answer(page).locator("a").all():
        await link.hover()

    assert await page.evaluate("window.hacked") is None
    assert outside == []
    assert len(server.sent("GET /v1/me")) == 1
    forbidden = last_answer(page).locator(
        "script, img, svg:not(.icon), iframe, style, form, input, base, details, math"
    )
    assert await forbidden.count() == 0
    attributes = "elements => elements.flatMap(e => e.getAttributeNames()).filter(name => /^on|style|src/.test(name))"
    assert await last_answer(page).locator("*").evaluate_all(attributes) == []


async def test_links_open_apart_and_lead_to_the_web_only(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "Where?")
    await turn.start()
    await turn.say(
        "[manual](https://example.invalid/m) [mail](mailto:a@example.invalid) [here](/v1/me) [bad](javascript:1)"
    )
    await turn.complete()
    await expect_ended(page)

    links = last_answer(page).locator("a")
    await expect(links).to_have_count(2)
    assert await links.evaluate_all(
        "all => all.map(a => [a.textContent, a.getAttribute('href'), a.target, a.rel])"
    ) == [
        ["manual", "https://example.invalid/m", "_blank", "noopener noreferrer nofollow"],
        ["mail", "mailto:a@example.invalid", "_blank", "noopener noreferrer nofollow"],
    ]
    await expect(last_answer(page)).to_have_text("manual mail here bad")


async def test_html_in_an_answer_is_shown_as_the_text_it_is(page: Page, server: PageServer) -> None:
    turn = await ask(page, server, "How do I write a script tag?")
    await turn.start()
    await turn.say("Write <script src=x></script> in the head, and H<sub>2</sub>O.")
    await turn.complete()
    await expect_ended(page)

    await expect(last_answer(page)).to_have_text("Write <script src=x></script> in the head, and H2O.")
