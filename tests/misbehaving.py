"""A web server on loopback that answers with whatever bytes a test says, at whatever pace."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


Write = Callable[[bytes], Awaitable[None]]
Answer = bytes | Callable[[Write], Awaitable[None]]


@dataclass
class Site:
    """What a server was asked, and where it listens."""

    port: int = 0
    requests: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    sent: int = 0


def response(body: bytes = b"", *, status: str = "200 OK", **headers: str) -> bytes:
    """A well-formed answer; a header's underscores are hyphens, and an empty value leaves it out."""
    named = {"Content-Type": "text/html", "Content-Length": str(len(body)), "Connection": "close"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(where: str, status: str = "302 Found") -> bytes:
    return response(status=status, Location=where)


@asynccontextmanager
async def serving(answers: Mapping[str, Answer] | Answer) -> AsyncIterator[Site]:
    """Answers by path, or one answer for all of them."""
    site, tasks = Site(), set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = lines[0].split(" ")[1]
            site.requests.append(path)
            site.hosts += [line.partition(": ")[2] for line in lines if line.lower().startswith("host:")]
            answer = (
                answers.get(path.partition("?")[0], response(status="404 Not Found"))
                if isinstance(answers, Mapping)
                else answers
            )

            async def write(data: bytes) -> None:
                writer.write(data)
                site.sent += len(data)
                await writer.drain()

            await (write(answer) if isinstance(answer, bytes) else answer(write))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
