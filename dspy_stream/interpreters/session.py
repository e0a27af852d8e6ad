"""The host's side of one session: messages there and back, within their time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters.base import CodeInterpreterError
from dspy_stream.interpreters.sandbox import Sandbox, SandboxLimits
from dspy_stream.interpreters.server import ForkServer, server

__all__ = ["Session", "encoded"]

_BEGIN: Final = 30.0  # seconds that a session may take to begin, on a machine that is busy
_WORDS: Final = 5.0  # seconds to hear how a process ended
_ENDS: Final = {
    "signal 9": "it was killed, as when the machine has no memory left",
    "signal 24": "it used up its processor time",
    "signal 11": "it crashed, as after endless recursion in C code",
}


class Session:
    """A process that runs code; used on the engine's loop, but for :meth:`kill`."""

    def __init__(self, limits: SandboxLimits, *, network: bool, paths: tuple[str, ...]) -> None:
        self._limits = limits
        self._order = {
            **{name: getattr(limits, name) for name in SandboxLimits.__slots__},
            **{"network": network, "paths": list(paths)},
        }
        self._network = network
        self._server: ForkServer | None = None
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._over = False

    async def begin(self) -> Sandbox:
        """Start the process; what holds it.

        Raises:
            ConfigurationError: the network was not allowed, and nothing here keeps code from it.
            CodeInterpreterError: it does not start.
        """
        self._loop = asyncio.get_running_loop()
        self._server = await server()
        self._number, connection, self._ended = await self._server.session(self._order)
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(
                sock=connection, limit=self._limits.message_bytes
            )
        except BaseException:  # the row was given up meanwhile
            connection.close()
            self._server.kill(self._number)
            raise
        if self._over:  # shut down meanwhile
            self.kill()
            raise CodeInterpreterError("the interpreter was shut down while it began")
        hello = await self._heard(_BEGIN, "it did not begin")
        sandbox = Sandbox(frozenset(map(str, hello["holds"])), self._network)
        if not self._network and not sandbox.network_is_off:
            self.kill()
            raise ConfigurationError(
                "this system has no means to keep code from the network: neither network namespaces nor "
                "filters of system calls. Allow it with PythonInterpreter(network=True), or give an "
                "interpreter that runs elsewhere"
            )
        return sandbox

    async def run(self, message: bytes, spent: float) -> tuple[Mapping[str, Any], float]:
        """Send a message, and return the answer and the seconds that the code has taken, ``spent`` included.

        Raises:
            CodeInterpreterError: the session is over.
        """
        if self._server is None or self._writer is None:
            raise CodeInterpreterError("the interpreter's session is over: it was shut down")
        async with self._server.turns:
            began = time.monotonic()
            # Tools do not give it more time: one that defies its clock may call them for ever.
            left = max(0.0, self._limits.seconds + self._limits.grace - spent)
            try:
                self._writer.write(message + b"\n")
                answer = await self._heard(
                    left, f"it did not stop {self._limits.grace:g} s after its {self._limits.seconds:g} s"
                )
            except BaseException:
                self.kill()
                raise
            return answer, spent + time.monotonic() - began

    async def _heard(self, seconds: float, late: str) -> Mapping[str, Any]:
        try:
            line = await asyncio.wait_for(self._reader.readline(), seconds)
        except asyncio.TimeoutError:
            raise self._failed(f"{late}, and was killed") from None
        except ValueError:
            raise self._failed(
                f"it sent more than {self._limits.message_bytes:,} bytes at once; let it hand in less"
            ) from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._failed(await self._last_words())
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._failed("it sent what is no message")
        return message

    async def _last_words(self) -> str:
        try:
            why = await asyncio.wait_for(asyncio.shield(self._ended), _WORDS)
        except asyncio.TimeoutError:
            return "it closed its connection"
        return f"its process ended ({why})" + (f": {_ENDS[why]}" if why in _ENDS else "")

    def _failed(self, why: str) -> CodeInterpreterError:
        self.kill()
        return CodeInterpreterError(f"the interpreter's session is over: {why}")

    def kill(self) -> None:
        """End the process; from any thread, and never waits."""
        self._over = True
        if self._server is None or self._loop is None or self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            self._server.kill(self._number)
            self._loop.call_soon_threadsafe(writer.close)  # which its process takes for the end, too
        except (CodeInterpreterError, RuntimeError):
            pass  # the first process is gone, or the loop: and with it the session


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as a line of JSON.

    Raises:
        ValueError: something in it has no JSON form.
    """
    try:
        return orjson.dumps(message)
    except TypeError:  # a number that is too long for it, or half of a character
        try:
            return json.dumps(message, allow_nan=False).encode()
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
