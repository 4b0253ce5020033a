"""The yardstick: a plain streaming proxy, the least that anything between a browser and a model server can do.

    python -m bench.proxy http://127.0.0.1:8080/v1

It hands on the bytes of each answer as they come, and remembers nothing.
"""

import asyncio
import sys

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web


async def serve(upstream: str) -> None:
    """Serve on a free loopback port until the process is ended."""
    async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None)) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{upstream}/chat/completions", data=body, headers=headers) as answer:
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
