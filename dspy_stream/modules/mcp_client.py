"""MCPClient: a connection to an MCP server that opens itself, and again where it broke."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.settled import settled
from dspy_stream.modules.supervisor import Intensity, Supervisor, is_seconds
from dspy_stream.program.types import Tool
from dspy_stream.program.types.foreign import is_closed, mcp_tool
from dspy_stream.runtime import before_stop, hop

__all__ = ["MCPClient", "MCPConnectionError"]

_LEAVING: Final = 10.0  # seconds; the library gives a command two to end by itself
_PING: Final = 5.0  # seconds for a server to say that it lives, after a call that took too long


class MCPConnectionError(RuntimeError):
    """An MCP server could not be reached, or was gone before a call of its tool had ended.

    Whether the tool did its work nobody knows, so the call is not made again by itself.
    """


class MCPClient:
    """A client of one MCP server, which opens the connection itself: ``MCPClient(["my-server"]).tools()``.

    The connection lives on the engine's loop, so its tools work from synchronous code, coroutines and
    flows alike, and in each worker process of ``isolation="process"`` over a connection of its own. It
    is opened by the first call that needs it. When the server ends, or does not answer any more, the
    calls in flight fail and the next call opens it anew, with a pause before each attempt but the first;
    after ``intensity`` that many times it gives up, which stops a flow.

    A command is started as a process without this one's environment, but for what a program needs to
    run (``PATH``, ``HOME``...) and what ``env`` names; it ends with the client, or with this process.
    Needs the extra ``mcp``.

    Args:
        server: a command with its arguments (stdio), or a URL (streamable HTTP).
        env: further variables of the command's environment.
        headers: of each HTTP request, such as ``Authorization``.
        seconds: how long the connection's opening, with all its attempts, and each call of a tool may take.
        intensity: how often it may be opened anew.

    Raises:
        ConfigurationError: neither a command nor a URL, or options of the other; (when called) the extra
            is not installed.
        MCPConnectionError: (when called) the server is gone, or did not answer in time.
        RestartsExceeded: (when called) it was opened in vain too often.

    >>> with MCPClient(["my-server", "--stdio"]) as client:  # doctest: +SKIP
    ...     agent = ReAct("question -> answer", tools=client.tools())
    ...     Stream.read("in.jsonl").through(agent).write("out.jsonl").run()
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 60.0,
        intensity: Intensity | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._connect = _connector(server, env, headers)
        self._name = f"the MCP server {_shown(server)}"
        if not is_seconds(seconds):
            raise ConfigurationError(f"seconds of an MCPClient is a number above 0, not {seconds!r}")
        self._seconds = seconds
        self._clock = clock if clock is not None else SystemClock()
        self._supervisor = Supervisor([self._name], intensity=intensity)
        self._link: _Link | None = None
        self._links: set[_Link] = set()  # with those that are being left
        self._opening: asyncio.Task[_Link] | None = None
        self._delay = 0.0
        self._in_vain = 0.0  # seconds for which no answer came
        self._process = os.getpid()

    def tools(self, *, result_mode: Literal["text", "structured"] = "text") -> list[Tool]:
        """The server's tools, asked for anew with each call; see ``Tool.from_mcp_tool``. Blocks."""
        listed = settled(hop(self._listed()))
        return [self._tool(each, result_mode) for each in listed]

    async def atools(self, *, result_mode: Literal["text", "structured"] = "text") -> list[Tool]:
        """The same from a coroutine."""
        return [self._tool(each, result_mode) for each in await hop(self._listed())]

    async def call_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call a tool by the server's name of it; what the MCP library gives. From any loop."""
        return await hop(self._asked(f"tool `{name}`", lambda it: it.call_tool(name, dict(arguments or {}))))

    def close(self) -> None:
        """End the connection, and the command; blocks until that is done. A later call opens it again."""
        settled(hop(self.aclose()))

    async def aclose(self) -> None:
        """The same from a coroutine of the engine's loop."""
        self._link = None
        if self._process == os.getpid() and self._links:
            await _left(self._links)

    def __enter__(self) -> MCPClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MCPClient({self._name.removeprefix('the MCP server ')!r})"

    def _tool(self, described: Any, result_mode: Literal["text", "structured"]) -> Tool:
        return Tool(**mcp_tool(self, described, result_mode, None))

    # ---------------------------------------------------------------------- on the engine's loop

    async def _listed(self) -> list[Any]:
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = await self._asked("its list of tools", partial(_page, cursor))
            found += page.tools
            cursor = getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None)
            if not cursor:
                return found

    async def _asked(self, what: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        link = await self._linked()
        try:
            return await asyncio.wait_for(ask(link.session), self._seconds)
        except asyncio.TimeoutError:
            if not await link.answers():
                self._lost(link, "it does not answer")
            raise MCPConnectionError(
                f"{self._name} did not give {what} within {self._seconds:g} s; seconds=... allows more"
            ) from None
        except Exception as error:
            if not is_closed(error):
                raise
            self._lost(link, _told(error))
            raise MCPConnectionError(
                f"{self._name} was gone before it gave {what}: {_told(error)}"
            ) from error

    async def _linked(self) -> _Link:
        if self._process != os.getpid():  # a fork has the objects, and not the connection
            self._process, self._link, self._opening, self._links = os.getpid(), None, None, set()
        if self._link is not None and self._link.held.done():
            self._lost(self._link, "the connection was closed")
        if self._link is not None:
            return self._link
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._opened())
            self._opening.add_done_callback(self._has_opened)
        return await asyncio.shield(self._opening)

    def _has_opened(self, opening: asyncio.Task[_Link]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # whoever asked for it may be gone

    async def _opened(self) -> _Link:
        began = self._clock.monotonic()
        try:
            return await asyncio.wait_for(self._attempts(), self._seconds)
        except asyncio.TimeoutError:
            # Not counted as time in which all went well: else no number of such failures were too many.
            self._in_vain += self._clock.monotonic() - began
            self._failed(f"no answer within {self._seconds:g} s")
            raise MCPConnectionError(
                f"{self._name} could not be opened within {self._seconds:g} s; seconds=... allows more"
            ) from None

    async def _attempts(self) -> _Link:
        while True:
            if self._delay:
                await self._clock.sleep(self._delay)
            link = _Link(self._connect)
            self._links.add(link)
            link.held.add_done_callback(partial(self._left, link))
            try:
                await link.opened
            except ConfigurationError:
                raise
            except asyncio.CancelledError:
                link.leave_soon()
                raise
            except Exception as error:  # noqa: BLE001 - the supervisor judges, and raises on
                link.leave_soon()
                self._failed(_told(error))
                continue
            self._link, self._delay = link, 0.0
            before_stop(self)
            own = asyncio.get_running_loop()
            weakref.finalize(self, own.call_soon_threadsafe, link.leave_soon).atexit = False
            return link

    def _lost(self, link: _Link, reason: str) -> None:
        link.leave_soon()
        if self._link is link:  # of many calls that saw it go, the first
            self._link = None
            self._failed(reason)

    def _left(self, link: _Link, _: object) -> None:
        self._links.discard(link)

    def _failed(self, reason: str) -> None:
        now = self._clock.monotonic() - self._in_vain
        self._delay = self._supervisor.failed(self._name, reason, now=now).delay


class _Link:
    """One connection, entered and left by one task, as the library demands.

    Attributes:
        opened: done when the ``session`` is there.
        held: done when the connection is over.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self.session: Any = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self.held = asyncio.ensure_future(self._hold(connect))

    async def _hold(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with connect() as self.session:
                if not self.opened.done():
                    self.opened.set_result(None)
                await self._end.wait()
        except Exception as error:  # noqa: BLE001 - before it is open the opener's to hear; later nobody's
            if not self.opened.done():
                self.opened.set_exception(error)

    async def answers(self) -> bool:
        """True where the server says that it lives."""
        try:
            await asyncio.wait_for(self.session.send_ping(), _PING)
        except Exception:  # noqa: BLE001 - however it fails
            return False
        return True

    def leave_soon(self) -> None:
        """Let the task leave; said again while it does, it would not get to end the command."""
        if self._end.is_set():
            return
        self._end.set()
        if not self.opened.done() or self.opened.cancelled():
            self.held.cancel()


async def _left(links: set[_Link]) -> None:
    """Leave connections, and wait until that is done."""
    for link in links:
        link.leave_soon()
    _, stuck = await asyncio.wait({link.held for link in links}, timeout=_LEAVING)
    for held in stuck:
        held.cancel()


def _page(cursor: str | None, session: Any) -> Awaitable[Any]:
    from mcp.types import PaginatedRequestParams

    listed: Awaitable[Any] = session.list_tools(params=PaginatedRequestParams(cursor=cursor))
    return listed


def _told(error: BaseException) -> str:
    """What was wrong; of a group of errors the first."""
    while (within := getattr(error, "exceptions", None)) is not None:
        error = within[0]
    said = str(error)
    return type(error).__name__ + (f": {said}" if said else "")


def _shown(server: Any) -> str:
    """A command's name, or a URL without what may be secret in it."""
    if not isinstance(server, str):
        return str(server[0])
    parts = urlsplit(server)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _connector(
    server: Any, env: Mapping[str, str] | None, headers: Mapping[str, str] | None
) -> Callable[[], AbstractAsyncContextManager[Any]]:
    if isinstance(server, str) and server.startswith(("http://", "https://")):
        if env:
            raise ConfigurationError("env is for a command; a URL takes headers")
        return partial(_over_http, server, dict(headers or {}))
    command = [] if isinstance(server, str) else list(server)
    if not command or not all(isinstance(each, str) for each in command):
        raise ConfigurationError(
            "an MCPClient takes a command as a list, such as ['my-server', '--stdio'], or a URL, not "
            f"{server!r}"
        )
    if headers:
        raise ConfigurationError("headers are for a URL; a command takes env")
    return partial(_over_stdio, command, dict(env or {}))


@asynccontextmanager
async def _over_stdio(command: list[str], env: dict[str, str]) -> AsyncIterator[Any]:
    _installed()
    from mcp import StdioServerParameters
    from mcp.client.stdio import get_default_environment, stdio_client

    server = StdioServerParameters(
        command=command[0], args=command[1:], env={**get_default_environment(), **env}
    )
    async with stdio_client(server) as streams, _session(streams) as session:
        yield session


@asynccontextmanager
async def _over_http(url: str, headers: dict[str, str]) -> AsyncIterator[Any]:
    _installed()
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    async with (
        create_mcp_http_client(headers=headers) as http,
        streamable_http_client(url, http_client=http) as streams,
        _session(streams) as session,
    ):
        yield session


@asynccontextmanager
async def _session(streams: Any) -> AsyncIterator[Any]:
    from mcp import ClientSession

    async with ClientSession(*streams[:2]) as session:
        await session.initialize()
        yield session


def _installed() -> None:
    try:
        import mcp  # noqa: F401 - whether it is there
    except ImportError:
        raise ConfigurationError(
            "an MCPClient needs the MCP library: pip install 'dspy_stream[mcp]'"
        ) from None
