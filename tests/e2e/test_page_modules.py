"""The page's modules that need no page: parsing and following events, Markdown while it grows, branches, days.

They run in the browser, where they belong: each test imports the module that it is about.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.page_server import PageServer, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = (Path(__file__).parents[1] / "data" / "answer.md").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """One page for all tests here: they leave nothing behind in it."""
    async with serve(PageServer()) as server, await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(server.url)
        yield page


# A server made of connections: each is a list of what it sends, and then it breaks off or ends.
FOLLOW = """
async ({ connections, after }) => {
  const { follow } = await import('/static/events.js');
  const { ApiError } = await import('/static/errors.js');
  const asked = [], events = [], said = [], waits = [];
  const open = async (last) => {
    asked.push(last);
    const { status = 200, retryAfter = null, sends = '', breaks = false } = connections.shift();
    if (status !== 200) throw new ApiError({ status, retryAfter });
    let sent = false;
    return new Response(new ReadableStream({
      pull(controller) {
        if (!sent) { sent = true; controller.enqueue(new TextEncoder().encode(sends)); }
        else if (breaks) controller.error(new TypeError('network error'));
        else controller.close();
      },
    }));
  };
  let error = null;
  try {
    await follow({
      open, after, signal: new AbortController().signal, random: () => 1,
      onEvent: ({ id, name }) => events.push([id, name]),
      onConnection: (state) => said.push(state),
      wait: async (ms) => { waits.push(ms); },
    });
  } catch (caught) { error = caught.status; }
  return { asked, events, said, waits, error };
}
"""


def event(number: int, name: str = "token") -> str:
    return f'id: {number}\nevent: {name}\ndata: {{"text": "x"}}\n\n'


async def follow(page: Page, *connections: dict[str, Any], after: int = -1) -> dict[str, Any]:
    followed: dict[str, Any] = await page.evaluate(FOLLOW, {"connections": list(connections), "after": after})
    return followed


async def test_events_are_the_same_wherever_the_bytes_are_cut(page: Page) -> None:
    stream = (
        "\ufeff: hello\r\n\r\nid: 0\r\nevent: turn.started\r\ndata: {}\r\n\r\n"
        "id:1\ndata: zwölf €\ndata:  🙂\n\nretry: 200\nretry: soon\nunknown: x\nid\n\n"
        "id: 2\rdata\r\r: end\n\nid: 3\ndata: lost"
    )
    cut = """async (stream) => {
      const { EventParser } = await import('/static/events.js');
      const bytes = new TextEncoder().encode(stream);
      const read = (cuts) => {
        const parser = new EventParser();
        let start = 0;
        const events = [];
        for (const end of [...cuts, bytes.length]) {
          events.push(...parser.feed(bytes.slice(start, end)));
          start = end;
        }
        return JSON.stringify([events, parser.retry]);
      };
      const ways = [read([])];
      for (let at = 0; at <= bytes.length; at++) ways.push(read([at]));
      ways.push(read([...bytes.keys()]));
      return [...new Set(ways)].map((way) => JSON.parse(way));
    }"""

    ways = await page.evaluate(cut, stream)

    assert ways == [
        [
            [
                {"id": "0", "name": "turn.started", "data": "{}"},
                {"id": "1", "name": "message", "data": "zwölf €\n 🙂"},
                {"id": "2", "name": "message", "data": ""},
            ],
            200,
        ]
    ]


async def test_a_broken_stream_goes_on_after_the_last_event(page: Page) -> None:
    got = await follow(
        page,
        {"sends": event(0, "turn.started") + event(1) + "id: 2\nevent: tok", "breaks": True},
        {"sends": event(2) + event(3, "turn.completed")},
    )

    assert got["asked"] == [-1, 1]
    assert got["events"] == [[0, "turn.started"], [1, "token"], [2, "token"], [3, "turn.completed"]]
    assert got["said"] == ["open", "lost", "open"]


async def test_an_event_that_was_seen_is_dropped_and_a_missing_one_is_asked_for(page: Page) -> None:
    got = await follow(
        page,
        {"sends": event(0) + event(1) + event(1) + event(0) + event(3)},
        {"sends": event(0) + event(1) + event(2) + event(3) + event(4, "turn.stopped") + event(5)},
    )

    assert got["asked"] == [-1, 1]
    assert [number for number, _ in got["events"]] == [0, 1, 2, 3, 4]


async def test_what_has_no_number_or_is_not_json_is_not_taken(page: Page) -> None:
    got = await follow(
        page,
        {"sends": "data: {}\n\n" + event(0) + "id: 1\ndata: {\n\n"},
        {"sends": event(1, "turn.failed")},
    )

    assert got["asked"] == [-1, 0]
    assert got["events"] == [[0, "token"], [1, "turn.failed"]]


async def test_waits_double_until_there_is_progress_and_heed_the_server(page: Page) -> None:
    refused, unreachable = {"status": 503}, {"status": 0}
    got = await follow(
        page,
        unreachable,
        refused,
        {"status": 429, "retryAfter": 7},
        {"sends": event(0) + "retry: 200\n\n"},
        {"sends": ": nothing\n\n"},
        {"sends": event(1, "turn.completed")},
    )

    assert got["waits"] == [600, 1200, 7000, 200, 400]


async def test_a_refusal_for_good_ends_it(page: Page) -> None:
    got = await follow(page, {"sends": event(0)}, {"status": 404})

    assert (got["error"], got["asked"]) == (404, [-1, 0])


async def test_a_connection_on_which_nothing_comes_counts_as_broken(page: Page) -> None:
    asked = await page.evaluate(
        """async () => {
          const { follow } = await import('/static/events.js');
          const asked = [];
          const final = new TextEncoder().encode('id: 0\\nevent: turn.completed\\ndata: {}\\n\\n');
          const open = async (last, signal) => {
            asked.push(last);
            return new Response(new ReadableStream({ start(controller) {
              if (asked.length > 1) controller.enqueue(final);
              else signal.addEventListener('abort', () => controller.error(signal.reason));
            } }));
          };
          await follow({ open, onEvent() {}, signal: new AbortController().signal, silence: 30, wait: async () => {} });
          return asked;
        }"""
    )

    assert asked == [-1, -1]


@pytest.mark.parametrize(
    ("growing", "healed"),
    [
        ("so **bo", "so **bo**"),
        ("so **bold*", "so **bold**"),
        ("so **", "so "),
        ("a *", "a "),
        ("a *wor", "a *wor*"),
        ("2 * 3", "2 * 3"),
        ("use `cod", "use `cod`"),
        ("use `", "use "),
        ("see [the man", "see the man"),
        ("see [the manual](https://exam", "see the manual"),
        ("array[0", "array[0"),
        ("Title\n-", "Title\n"),
        ("Title\n=", "Title\n"),
        ("text\n\n1", "text\n\n"),
        ("text\n\n``", "text\n\n"),
        ("```py\nx = 1\n``", "```py\nx = 1\n"),
        ("```py\nx = **", "```py\nx = **"),
        ("```py\nx\n```\n**b", "```py\nx\n```\n**b**"),
        ("| a | b |\n|--", ""),
        ("| a | b |\n|---|---|\n| 1 |", "| a | b |\n|---|---|\n"),
        ("done.", "done."),
    ],
)
async def test_what_has_begun_is_shown_as_what_it_will_be(page: Page, growing: str, healed: str) -> None:
    got = await page.evaluate("async (text) => (await import('/static/markdown.js')).heal(text)", growing)

    assert got == healed


async def test_growing_markdown_never_shows_its_marks_and_keeps_finished_blocks(page: Page) -> None:
    grow = """async (text) => {
      const { LiveMarkdown } = await import('/static/markdown.js');
      const [grown, whole] = [document.createElement('div'), document.createElement('div')];
      const live = new LiveMarkdown(grown);
      const odd = new Set();
      let first = null, replaced = 0;
      for (let end = 0; end <= text.length; end += 3) {
        live.update(text.slice(0, end), true);
        for (const found of grown.innerText.match(/\\*\\*|^#+ |\\]\\(|\\|--/gm) ?? []) odd.add(found);
        const paragraph = grown.querySelector('.block-heading > *');
        if (first && paragraph !== first && end > text.indexOf('```sql') + 10) replaced++;
        first = paragraph;
      }
      live.update(text, false);
      new LiveMarkdown(whole).update(text, false);
      return { odd: [...odd], same: grown.innerHTML === whole.innerHTML, replaced };
    }"""

    assert await page.evaluate(grow, ANSWER) == {"odd": [], "same": True, "replaced": 0}


async def test_colours_never_change_the_code(page: Page) -> None:
    same = await page.evaluate(
        """async (text) => {
          const { colour } = await import('/static/code.js');
          return ['python', 'sql', 'bash', 'ts', 'scala', 'yaml', 'unknown', ''].map((language) => {
            const code = document.createElement('code');
            code.textContent = text;
            colour(code, language);
            return code.textContent === text;
          });
        }""",
        ANSWER + '\'unclosed <b> """ /* -- # \\',
    )

    assert same == [True] * 8


async def test_the_branch_on_show_leads_to_the_newest_turn_or_to_the_chosen_one(page: Page) -> None:
    shown = """async ({ turns, chosen }) => {
      const { branch, fromInfo } = await import('/static/turns.js');
      const info = ([turn_id, parent, status, beside]) => ({ turn_id, parent, status, beside, input: '' });
      const all = turns.map((turn) => fromInfo(info(turn)));
      return branch(all, new Map(Object.entries(chosen))).map(({ turn, beside }) => `${turn.id}/${beside.length}`);
    }"""
    done, running = "completed", "running"
    plain: list[list[str | None]] = [["a", None, done], ["b", "a", done], ["c", "b", done]]
    branched: list[list[str | None]] = [*plain, ["b2", "a", done, "b"], ["d", "b2", done]]

    async def branch(turns: list[list[str | None]], **chosen: str) -> list[str]:
        path: list[str] = await page.evaluate(shown, {"turns": turns, "chosen": chosen})
        return path

    assert await branch(plain) == ["a/1", "b/1", "c/1"]
    assert await branch(branched) == ["a/1", "b2/2", "d/1"]
    assert await branch(branched, a="b") == ["a/1", "b/2", "c/1"]
    assert await branch([["a", None, done], ["a2", None, done, "a"]]) == ["a2/2"]
    assert await branch([["a", None, done], ["a2", None, running, "a"]]) == ["a2/2"]
    assert await branch([["a", None, running], ["b", None, "queued"]]) == ["a/1", "b/1"]
    assert await branch([["k", "no longer kept", done], ["l", "k", done]]) == ["k/1", "l/1"]
    assert await branch([["a", "b", done], ["b", "a", done]]) == []


async def test_days_are_those_of_the_reader(page: Page) -> None:
    days = await page.evaluate(
        """async () => {
          const { dayOf } = await import('/static/days.js');
          const now = new Date(2026, 2, 29, 0, 30);
          const at = (...when) => dayOf(new Date(2026, ...when).getTime(), now);
          return [at(2, 29, 0, 10), at(2, 28, 23, 59), at(2, 24, 12), at(2, 1, 12), at(0, 5), at(2, 29, 23)];
        }"""
    )

    assert days == ["Today", "Yesterday", "Last 7 days", "Last 30 days", "January 2026", "Today"]
