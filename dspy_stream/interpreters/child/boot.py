"""The first of the interpreter's processes: never runs code itself, and forks one that does for each session.

It is started once, with nothing but the standard library and an empty environment. Its children begin
with what it has imported, so a session costs a fork instead of the start of a Python.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
from collections import deque
from typing import Any, Final, NoReturn

from dspy_stream.interpreters.child import confine, session, warm

__all__ = ["main"]

_CONTROL: Final = 3  # where the host's orders come from
_SESSION: Final = 3  # the same number in a session's process, where the other is closed
_LIMIT: Final = 1 << 16


def main(folder: str, root: str) -> NoReturn:
    """Take orders until the host hangs up."""
    os.setsid()
    os.closerange(_CONTROL + 1, _LIMIT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only the standard library can be imported from here on.
    sys.path[:] = [place for place in sys.path if place and os.path.realpath(place) != os.path.realpath(root)]
    sys.argv[:] = [""]
    gc.collect()  # what is shared is never touched again
    gc.freeze()
    _Server(folder).run()


class _Server:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._control = socket.socket(fileno=_CONTROL)
        self._numbers: dict[int, int] = {}  # process -> session
        self._sockets: deque[int] = deque()
        self._pending = b""
        self._woken, wake = os.pipe()
        for end in (self._woken, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake)

    def run(self) -> NoReturn:
        self._say({"ready": os.getpid()})
        while True:
            for found in select.select([self._control.fileno(), self._woken], [], [])[0]:
                if found == self._woken:
                    os.read(self._woken, _LIMIT)
                else:
                    self._orders()
            self._buried()

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._end()

    def _end(self) -> NoReturn:
        for process in self._numbers:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _orders(self) -> None:
        try:
            data, sockets, _, _ = socket.recv_fds(self._control, _LIMIT, 16)
        except OSError:
            data, sockets = b"", []
        self._sockets.extend(sockets)
        if not data:
            self._end()
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._order(json.loads(line))

    def _order(self, order: dict[str, Any]) -> None:
        if "kill" in order:
            for process, number in self._numbers.items():
                if number == order["kill"]:
                    os.kill(process, signal.SIGKILL)
            return
        theirs = self._sockets.popleft()
        me = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            self._say({"ended": order["number"], "why": f"no process could be started: {error.strerror}"})
            os.close(theirs)
            return
        if process == 0:
            try:
                self._become(theirs, order, me)
            finally:
                os._exit(70)
        self._numbers[process] = order["number"]
        os.close(theirs)

    def _become(self, theirs: int, order: dict[str, Any], parent: int) -> None:
        """In the new process: be a session."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        confine.die_with_parent(parent)
        self._control.detach()
        os.dup2(theirs, _SESSION)
        os.closerange(_SESSION + 1, _LIMIT)
        held = confine.confine({**order, "folder": self._folder})
        confine.die_with_parent(parent)  # again, since the kernel forgets it where privileges change
        sys.path.extend(order["paths"])
        for name in [name for name in sys.modules if name.partition(".")[0] in _HIDDEN]:
            del sys.modules[name]
        session.serve(_SESSION, order["output_chars"], {"holds": held})

    def _buried(self) -> None:
        """Tell of the sessions that have ended."""
        while self._numbers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            number = self._numbers.pop(process, None)
            shutil.rmtree(os.path.join(self._folder, str(number)), ignore_errors=True)
            code = os.waitstatus_to_exitcode(status)
            self._say({"ended": number, "why": f"signal {-code}" if code < 0 else f"exit code {code}"})


# What this process needed and code must do without; importing it again is refused or finds nothing.
_HIDDEN: Final = (*warm.HIDDEN, "dspy_stream")
