"""The host's side of the first process: starts it, asks it for sessions, hears of their ends.

Everything here runs on the engine's loop, but for :meth:`ForkServer.kill`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters.base import CodeInterpreterError
from dspy_stream.runtime import before_stop

__all__ = ["ForkServer", "server"]

_ROOT: Final = str(Path(__file__).resolve().parents[2])  # the folder that holds the package
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from dspy_stream.interpreters.child.boot import main; main(sys.argv[1], sys.argv[2])"
)
_CONTROL: Final = 3  # where the process finds its end of the socket
_PATIENCE: Final = 30.0  # seconds that it may take to begin
_FULL: Final = 0.005  # seconds to wait while orders are not taken
_CHUNK: Final = 1 << 16


class ForkServer:
    """One process that forks the sessions."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="dspy_stream_")
        self._socket: socket.socket | None = None
        self._pending = b""
        self._process = 0
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ends: dict[int, asyncio.Future[str]] = {}
        self._sending = threading.Lock()
        # More code at a time than processors would make each look slower than it is.
        self.turns = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return self._socket is not None

    async def start(self) -> None:
        """Start it, and wait until it takes orders.

        Raises:
            CodeInterpreterError: it does not.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self._process = _spawned(theirs.fileno(), self._folder)
        except OSError as error:
            ours.close()
            raise CodeInterpreterError(f"no Python could be started for code: {error}") from error
        finally:
            theirs.close()
        self._socket = ours
        self._loop.add_reader(ours.fileno(), self._readable)
        before_stop(self)
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), _PATIENCE)
        except asyncio.TimeoutError:
            await self.aclose()
            raise CodeInterpreterError(f"the Python for code did not begin within {_PATIENCE:g} s") from None

    async def session(self, order: Mapping[str, Any]) -> tuple[int, socket.socket, asyncio.Future[str]]:
        """A new session: its number, our end of its socket, and how it will have ended."""
        self._count += 1
        number = self._count
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ended: asyncio.Future[str] = self._loop.create_future()
        self._ends[number] = ended
        try:
            line = json.dumps({**order, "number": number}).encode() + b"\n"
            while not self._sent(line, [theirs.fileno()]):  # noqa: ASYNC110 - nobody tells when it was read
                await asyncio.sleep(_FULL)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return number, ours, ended

    def kill(self, number: int) -> None:
        """End a session's process; from any thread, and never waits."""
        if not self._sent(json.dumps({"kill": number}).encode() + b"\n", []):
            # Too many orders are under way; code that runs for ever would not hear of it otherwise.
            self._loop.call_soon_threadsafe(self._loop.call_later, _FULL, self.kill, number)

    def _sent(self, line: bytes, sockets: list[int]) -> bool:
        with self._sending:
            if self._socket is None:
                if sockets:
                    raise CodeInterpreterError("the Python that begins sessions has ended")
                return True
            try:
                # One small message at a time: it is taken whole, or not at all.
                socket.send_fds(self._socket, [line], sockets)
            except BlockingIOError:
                return False
            except OSError as error:
                raise CodeInterpreterError(f"the Python that begins sessions has ended: {error}") from error
            return True

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._told(json.loads(line))

    def _told(self, message: Mapping[str, Any]) -> None:
        if "ready" in message and not self._ready.done():
            self._ready.set_result(None)
        ended = self._ends.pop(message.get("ended", 0), None)
        if ended is not None and not ended.done():
            ended.set_result(str(message["why"]))

    def _lost(self) -> None:
        """It has ended, and every session with it."""
        with self._sending:
            found, self._socket = self._socket, None
        if found is None:
            return
        self._loop.remove_reader(found.fileno())
        found.close()
        threading.Thread(target=_buried, args=(self._process, self._folder), daemon=True).start()
        if not self._ready.done():
            self._ready.set_exception(CodeInterpreterError("the Python for code ended as it began"))
            self._ready.exception()  # whoever waits is told; if nobody does, that is no fault
        for ended in self._ends.values():
            if not ended.done():
                ended.set_result("the first process ended")
        self._ends.clear()

    async def aclose(self) -> None:
        """End it; its sessions end with it."""
        self._lost()


def _spawned(control: int, folder: str) -> int:
    """Start the process, with nothing of ours but one socket: no environment, no files, no terminal."""
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    arguments = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, folder, _ROOT]
    # A fork would copy the tables of a process that may be large; this does not.
    return os.posix_spawn(
        sys.executable,
        arguments,
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, control, _CONTROL), *null],
    )


def _buried(process: int, folder: str) -> None:
    try:
        os.waitpid(process, 0)
    except ChildProcessError:
        pass  # somebody who waits for all children was quicker
    shutil.rmtree(folder, ignore_errors=True)


_current: ForkServer | None = None
_starting: asyncio.Task[ForkServer] | None = None


def _forget() -> None:
    global _current, _starting
    _current = _starting = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


async def server() -> ForkServer:
    """The process's fork server; started by the first who asks, and again where it has ended.

    Raises:
        ConfigurationError: the system has no processes of the kind.
        CodeInterpreterError: it does not start.
    """
    global _starting
    if not hasattr(os, "posix_spawn") or not hasattr(socket, "send_fds"):
        raise ConfigurationError(
            "PythonInterpreter needs Linux or macOS; elsewhere give an interpreter of your own"
        )
    if _current is not None and _current.alive:
        return _current
    if _starting is None or _starting.done():
        _starting = asyncio.get_running_loop().create_task(_started())
    return await asyncio.shield(_starting)


async def _started() -> ForkServer:
    global _current
    made = ForkServer()
    await made.start()
    _current = made
    return made
