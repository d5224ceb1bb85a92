"""Text search by a tool of any MCP server.

What the tool answers is a list of objects with `title`, `text` (or `snippet`, `body`, `content`) and `url` (or `link`,
`href`), as structured content or as JSON in a text block; else every text block is one hit without a title.
"""

import asyncio
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.deadline import seconds_for_parts
from mmsearch_trl.search.calls.section import Shared, TextConfig, named
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.web.service import check_url


if TYPE_CHECKING:
    from mcp.client.client import Client

_TEXTS = ("text", "snippet", "body", "content", "contents", "summary", "description")
_ADDRESSES = ("url", "link", "href")
_CONNECTING_SECONDS = 30.0
_LEAVING_SECONDS = 5.0
_LISTS = ("results", "hits", "items", "result", "documents")


@dataclass(frozen=True, kw_only=True)
class McpConfig(TextConfig):
    """`search.text` with `backend: mcp`."""

    backend: Literal["mcp"] = field(default="mcp", metadata={"help": "A tool of any MCP server."})
    server: str = field(metadata={"help": "Its address, or the command that starts it."})
    tool: str = field(metadata={"help": "The server's tool that searches."})
    argument: str = field(default="query", metadata={"help": "The tool's argument for the query."})
    environment: list[str] = field(
        default_factory=list, metadata={"help": "Variables that a server which is started may see, for its keys."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "://" in self.server.partition(" ")[0]:
            with named("search.text.server"):
                check_url(self.server, "http://127.0.0.1:8000/mcp")

    def open(self, shared: Shared) -> "McpSearch":
        server = self.server if self.server.startswith(("http://", "https://")) else shlex.split(self.server)
        with named("search.text.server"):
            return McpSearch(server, self.tool, argument=self.argument, environment=self.environment)


class McpSearch:
    """A `SearchBackend[str]`. The server is connected to at the first search.

    Args:
        server: An address (`https://...`), or the command that starts it, with its arguments.
        tool: Name of the tool.
        argument: Name of the tool's argument for the query.
        environment: Names of the variables that a started server may see, for its keys.

    Raises:
        UserError: there is no command, a variable is not set, or the MCP package is not installed.
    """

    name = "mcp"

    def __init__(
        self,
        server: str | Sequence[str],
        tool: str,
        *,
        argument: str = "query",
        environment: Sequence[str] = (),
    ) -> None:
        with optional("searching by an MCP server", "mcp"):
            import mcp.client.client  # noqa: F401
        if not server:
            raise UserError("an MCP server is an address or a command, and this one is empty")
        if missing := [name for name in environment if name not in os.environ]:
            raise UserError(f"the MCP server wants {', '.join(missing)}, which the environment does not have")
        self._server = server
        self._environment = tuple(environment)
        self._tool, self._argument = tool, argument
        self._connection: _Connection | None = None
        words = [server] if isinstance(server, str) else server
        self.fingerprint = digest_of(self.name, *words, tool, argument)

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        """What the tool answers, at most `k` hits.

        Raises:
            SearchError: `UNAVAILABLE`: the server is not there, has no such tool, or the tool failed.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        connection = self._connection = self._connection or _Connection(self._target())
        try:
            client = await connection.client()
            answer = await client.call_tool(self._tool, {self._argument: query})
        except MCPError as error:  # the server's own words stay out: they may hold anything
            if error.code == CONNECTION_CLOSED:
                await connection.close()
            raise SearchError(
                FailureKind.UNAVAILABLE, f"the MCP server refuses the call (code {error.code})"
            ) from None
        except Exception as error:  # transports raise whatever theirs is
            await connection.close()
            raise SearchError(FailureKind.UNAVAILABLE, f"the MCP server failed: {type(error).__name__}") from None
        if answer.is_error:
            raise SearchError(FailureKind.UNAVAILABLE, f"the MCP tool {self._tool} reports an error")
        texts = [block.text for block in answer.content if block.type == "text"]
        return list(_hits(answer.structured_content, texts))[:k]

    async def check(self) -> None:
        """See that the server is there and has the tool.

        Raises:
            SearchError: `UNAVAILABLE`.
        """
        connection = self._connection = self._connection or _Connection(self._target())
        try:
            tools = (await (await connection.client()).list_tools()).tools
        except Exception as error:  # transports raise whatever theirs is
            await connection.close()
            raise SearchError(FailureKind.UNAVAILABLE, f"the MCP server failed: {type(error).__name__}") from None
        names = [tool.name for tool in tools]
        if self._tool not in names:
            known = ", ".join(names[:10]) or "none"
            raise SearchError(FailureKind.UNAVAILABLE, f"the MCP server has no tool {self._tool}; it has {known}")

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _target(self) -> Any:
        if isinstance(self._server, str):
            return self._server
        from mcp.client.stdio import StdioServerParameters

        command, *args = self._server
        environment = {name: os.environ[name] for name in self._environment}
        return StdioServerParameters(command=command, args=args, env=environment)


class _Connection:
    """A client that is entered and left by one task, as its task groups demand."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._owner: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Client] | None = None
        self._leave = asyncio.Event()

    async def client(self) -> "Client":
        """The connected client.

        Raises:
            Exception: whatever kept it from connecting.
        """
        if self._owner is None or self._owner.done():
            self._leave = asyncio.Event()
            self._ready = asyncio.get_running_loop().create_future()
            # Whoever waited may have left: asyncio logs an exception that nobody has looked at.
            self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
            self._owner = asyncio.create_task(self._own(self._ready, self._leave))
        assert self._ready is not None
        # Many searches wait for one connection: the cancellation of one of them must not end it.
        return await asyncio.shield(self._ready)

    async def close(self) -> None:
        """Let the owner leave, whichever task asks for it; one that the server keeps is cancelled."""
        owner, self._owner = self._owner, None
        if owner is None or self._ready is None:
            return
        self._leave.set()
        if self._ready.done():
            await asyncio.wait([owner], timeout=_LEAVING_SECONDS)
        owner.cancel()
        await asyncio.wait([owner], timeout=_LEAVING_SECONDS)

    async def _own(self, ready: "asyncio.Future[Client]", leave: asyncio.Event) -> None:
        from mcp.client.client import Client

        try:
            # In the time of the call that begins it: a server that is silent costs that call, and the next one begins
            # anew.
            async with asyncio.timeout(seconds_for_parts(_CONNECTING_SECONDS)) as limit:
                async with Client(self._target) as client:
                    limit.reschedule(None)
                    ready.set_result(client)
                    await leave.wait()
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
        finally:
            if not ready.done():
                ready.cancel()


def _hits(structured: Any, texts: Sequence[str]) -> Iterator[TextHit]:
    for candidate in (structured, *map(_json, texts)):
        if rows := _rows(candidate):
            for row in rows:
                url = _first(row, _ADDRESSES) or None
                yield TextHit(title=_first(row, ("title",)), text=_first(row, _TEXTS), url=url)
            return
    yield from (TextHit(title="", text=text) for text in texts if text.strip())


def _json(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _rows(value: Any) -> list[Mapping[str, Any]]:
    """The list of results in a value, if there is one."""
    if isinstance(value, dict):
        value = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), [value])
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    return [row for row in rows if _first(row, _TEXTS) or _first(row, ("title",))]


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()), "")
