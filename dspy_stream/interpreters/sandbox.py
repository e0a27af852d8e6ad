"""What a sandboxed process may use, and what holds it there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dspy_stream.errors import ConfigurationError

__all__ = ["Sandbox", "SandboxLimits"]

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one session may use.

    Attributes:
        seconds: time that one piece of code may take, without what it waits for tools. At its end the
            code is stopped by an exception, and its session goes on; where the code does not stop, the
            process is killed ``grace`` seconds later, and the session is over.
        grace: see ``seconds``.
        cpu_seconds: processor time of the whole session.
        memory_bytes: address space of the process, its Python included.
        folder_bytes: all files in its folder, where that is kept in memory.
        file_bytes: one file.
        open_files: files that are open at a time.
        output_chars: printed text that is kept of one piece of code: its beginning and its end.
        message_bytes: the longest message from the process: a result, or a tool's arguments.

    Raises:
        ConfigurationError: one of them is not above zero.
    """

    seconds: float = 10.0
    grace: float = 2.0
    cpu_seconds: int = 60
    memory_bytes: int = 512 * _MIB
    folder_bytes: int = 64 * _MIB
    file_bytes: int = 64 * _MIB
    open_files: int = 64
    output_chars: int = 100_000
    message_bytes: int = 16 * _MIB

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"SandboxLimits: {name} must be above 0, not {getattr(self, name)!r}"
                )


_MEANS: Final = {
    "user_namespace": "it is nobody outside, and has no rights over other users' processes",
    "network_namespace": "it has a network of its own, with nothing in it",
    "folder_in_memory": "its folder is its own, in memory, limited as a whole, and gone with it",
    "limits": "the kernel limits its memory, processor time, open files and the size of a file",
    "no_privileges": "it has no capabilities, can gain none, and cannot be traced",
    "landlock": "the kernel lets it read the Python library and what it loads, and write to its folder alone",
    "seccomp": "the kernel refuses it new programs and processes, signals to others, and sockets",
    "audit_hook": "Python refuses the same in words; a courtesy, and no wall",
}

_NEVER: Final = (
    "faults of the kernel itself, through the calls that it may make",
    "how long it runs compared with others: it takes a processor for as long as its limits allow",
    "many threads: some thousand for each session, as many as its memory holds",
    "what its tools do: they run outside, with the arguments that the code chooses",
    "what its output says: it may be wrong, and made to mislead whoever reads it",
)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What holds a session on this system.

    Attributes:
        holds: names of the means in force.
        network: True where the user allowed the network.

    >>> Sandbox(frozenset({"limits", "audit_hook"})).network_is_off
    False
    """

    holds: frozenset[str]
    network: bool = False

    @property
    def network_is_off(self) -> bool:
        """True where the kernel, and not just Python, keeps code from the network."""
        return not self.network and bool(self.holds & {"network_namespace", "seccomp"})

    @property
    def files_are_closed(self) -> bool:
        """True where the kernel keeps code from the files of the machine."""
        return "landlock" in self.holds

    def stops(self) -> tuple[str, ...]:
        """What is in force, in words."""
        found = tuple(words for name, words in _MEANS.items() if name in self.holds)
        return tuple(words.replace(", and sockets", "") for words in found) if self.network else found

    def does_not_stop(self) -> tuple[str, ...]:
        """What is not, in words: what this system lacks, and what no sandbox of this kind does."""
        return (*self._gaps(), *_NEVER)

    def _gaps(self) -> Iterable[str]:
        if self.network:
            yield "the network: it was allowed"
        elif not self.network_is_off:
            yield "the network, for code that gets around Python's refusal"
        if not self.files_are_closed:
            yield "reading any file that this user can read, for code that gets around Python's refusal"
        if "limits" not in self.holds:
            yield "using up the memory of the machine"
        if "seccomp" not in self.holds:
            yield "sockets in the file system, and new processes, for code that gets around Python's refusal"
            yield "signals to processes of this user, for code that gets around Python's refusal"
        if "folder_in_memory" not in self.holds:
            yield "filling the disk with many files"

    def __str__(self) -> str:
        lines = ["In force:", *self.stops(), "Not stopped:", *self.does_not_stop()]
        return "\n".join(line if line.endswith(":") else f"- {line}" for line in lines)
