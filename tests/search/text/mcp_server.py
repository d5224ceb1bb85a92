"""A search server over MCP, as a user may have one; run by `test_mcp_tool.py` over standard input and output."""

import asyncio
import os

from mcp.server.mcpserver import MCPServer


server = MCPServer("stand-in")


@server.tool()
async def structured(query: str) -> list[dict[str, str]]:
    await asyncio.sleep(0.2)
    return [{"title": f"{query} {number}", "snippet": "words", "link": "http://a.example"} for number in range(9)]


@server.tool()
def plain(words: str) -> str:
    return f"about {words}"


@server.tool()
def broken(query: str) -> str:
    raise RuntimeError("sesame")


@server.tool()
def dying(query: str) -> str:
    os._exit(1)


@server.tool()
def environment(query: str) -> str:
    return f"key: {os.environ.get('STAND_IN_KEY')}, other: {os.environ.get('OTHER_KEY')}"


if __name__ == "__main__":
    server.run("stdio")
