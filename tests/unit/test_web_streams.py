"""What keeps streams healthy: pings, a deadline for readers that take nothing, and a quick end at shutdown."""

import asyncio
from collections.abc import Callable

from prometheus_client import REGISTRY

from tests.support.web_client import Web, events_of, serving
from web.site import SITE


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_silence_is_broken_by_comments() -> None:
    async with serving(ping_seconds=0.05) as web:
        turn_id = await web.ask()
        async with asyncio.timeout(5):
            answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
            assert await answer.content.readuntil(b"\n\n") == b"retry: 300\n\n"
            assert await answer.content.readuntil(b"\n\n") == b": ping\n\n"
            assert await answer.content.readuntil(b"\n\n") == b": ping\n\n"

            web.kafka.claim(turn_id)
            web.kafka.end(turn_id)
            assert [event.name async for event in events_of(answer)] == ["turn.started", "turn.completed"]


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_are_not_held_up() -> None:
    async with serving(write_seconds=0.2) as web:
        turn_id = await web.ask()
        cut_before = REGISTRY.get_sample_value("headrace_slow_readers_total") or 0.0
        stuck = await stuck_reader(web, turn_id)
        reader = await web.open("GET", f"/v1/turns/{turn_id}/events")
        events = events_of(reader)
        await until(lambda: web.kafka.readers == 2)

        web.kafka.claim(turn_id)
        assert (await anext(events)).name == "turn.started"
        # More than all the buffers between us and the reader can take.
        for _ in range(300):
            web.kafka.say(turn_id, "x" * 65_536)
            await anext(events)
        await until(lambda: web.kafka.readers == 1)

        assert REGISTRY.get_sample_value("headrace_slow_readers_total") == cut_before + 1
        web.kafka.end(turn_id)
        assert (await anext(events)).name == "turn.completed"
        stuck.close()


async def test_a_reader_that_was_cut_off_comes_back_and_misses_nothing() -> None:
    async with serving(write_seconds=0.4) as web:
        turn_id = await web.ask()
        web.kafka.claim(turn_id)
        path = f"/v1/turns/{turn_id}/events"
        answer = await web.open("GET", path)
        assert (await anext(events_of(answer))).id == "0"
        # More than all the buffers between us and the reader, which does not read on, can take.
        web.kafka.say(turn_id, *["x" * 65_536] * 300)
        await until(lambda: web.kafka.readers == 0)
        web.kafka.end(turn_id)

        again = await web.open("GET", path, headers={"Last-Event-ID": "0"})
        ids = [int(event.id) async for event in events_of(again)]

        assert ids == list(range(1, 302))
        answer.close()


async def stuck_reader(web: Web, turn_id: str) -> asyncio.StreamWriter:
    """Open a stream, and never read from it."""
    url = web.server.make_url(f"/v1/turns/{turn_id}/events")
    _, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport has it
    writer.write(
        f"GET {url.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-key-0123456789\r\n\r\n".encode()
    )
    return writer


async def test_a_reader_that_is_slow_but_reads_is_not_cut_off() -> None:
    async with serving(write_seconds=0.4) as web:
        turn_id = await web.ask()
        web.kafka.claim(turn_id)
        # Enough to fill the buffers, so that it all goes out at the reader's pace.
        web.kafka.say(turn_id, *["x" * 100_000] * 120)
        web.kafka.end(turn_id)
        answer = await web.open("GET", f"/v1/turns/{turn_id}/events")

        names = []
        async for event in events_of(answer):
            names.append(event.name)
            await asyncio.sleep(0.01)

        assert names[-1] == "turn.completed"
        assert len(names) == 122


async def test_a_reader_that_leaves_is_noticed_although_nothing_is_said() -> None:
    async with serving() as web:
        turn_id = await web.ask()
        answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
        await until(lambda: web.kafka.readers == 1)

        answer.close()

        await until(lambda: web.kafka.readers == 0)
        assert REGISTRY.get_sample_value("headrace_open_streams", {"kind": "events"}) == 0


async def test_a_shutdown_sends_readers_on_and_does_not_wait_for_their_turns() -> None:
    async with serving() as web:
        turn_id = await web.ask()
        web.kafka.claim(turn_id)
        answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
        await until(lambda: web.kafka.readers == 1)

        async with asyncio.timeout(10):
            await web.server.close()
            text = await answer.text()

        assert text.startswith("retry: 300\n\nid: 0\nevent: turn.started\n")
        assert text.endswith("\n\nretry: 200\n\n")
        assert web.kafka.readers == 0


async def test_cleaning_up_twice_is_harmless_because_faust_does() -> None:
    async with serving() as web:
        site = web.server.app[SITE]
        assert not site.http.closed

        await site.close(web.server.app)
        await site.close(web.server.app)
        await site.streams.close()
        await site.streams.close()


async def test_who_comes_during_the_shutdown_is_sent_on_at_once() -> None:
    async with serving() as web:
        turn_id = await web.ask()
        await web.server.app[SITE].streams.close()

        async with asyncio.timeout(5):
            answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
            assert (await answer.text()).endswith("retry: 200\n\n")
