"""A server of MCP tools: over standard input and output, or at a port: [PORT]. Of either version of mcp."""

import asyncio
import os
import sys
from typing import Annotated

from pydantic import BaseModel, Field

try:
    from mcp.server.mcpserver import Image, MCPServer
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp import Image

server = MCPServer("test")


class Place(BaseModel):
    lat: float
    lon: float = 0.0


class Weather(BaseModel):
    city: str
    degrees: float


@server.tool()
def add(a: int, b: Annotated[int, Field(description="the second")] = 1) -> int:
    """Add numbers."""
    return a + b


@server.tool()
def weather(city: str, place: Place | None = None) -> Weather:
    """The weather."""
    return Weather(city=city, degrees=place.lat if place else 20.0)


@server.tool(structured_output=False)
def several() -> list[str]:
    """More than one text."""
    return ["a", "b"]


@server.tool()
def fails(why: str) -> str:
    """Never works."""
    raise ValueError(f"no {why}")


@server.tool(structured_output=False)
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG", format="png")


@server.tool(structured_output=False)
def nothing() -> None:
    """Gives nothing."""


@server.tool()
async def slow(seconds: float) -> str:
    """Takes long."""
    await asyncio.sleep(seconds)
    return "done"


@server.tool()
def stuck() -> str:
    """Holds up the whole server."""
    while True:
        os.read(_never[0], 1)


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)


@server.tool()
def process() -> str:
    """The server's process, and what it has of the environment."""
    return f"{os.getpid()} {os.environ.get('TOKEN', '-')} {os.environ.get('SECRET', '-')}"


_never = os.pipe()

if __name__ == "__main__":
    if len(sys.argv) == 1:
        server.run("stdio")
    else:
        import uvicorn

        uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), access_log=False, ws="none")
