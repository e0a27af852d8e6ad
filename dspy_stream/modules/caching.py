"""The cache of calls made outside flows, with DSPy's names: the journal in force, under another name."""

from __future__ import annotations

import atexit
import threading
from os import PathLike
from pathlib import Path
from typing import Any, Final

from dspy_stream.configuration import configure, settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.cache import Journal, forget_direct
from dspy_stream.modules.scope import forget_memory
from dspy_stream.state import MemoryJournal, open_journal
from dspy_stream.types import Usage

__all__ = ["cache", "configure_cache"]

_BYTES: Final = 64 << 20  # as much as a journal in memory keeps by itself
_lock: Final = threading.Lock()
_open: dict[Path, Any] = {}  # a folder has one owner, so what was opened here is used again


class _Nothing:
    """A journal that keeps nothing: each call is made."""

    def get(self, key: bytes) -> bytes | None:
        """Nothing."""
        del key
        return None

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None, model: str = "") -> None:
        """Forget it."""


def configure_cache(
    enable_disk_cache: bool = True,
    enable_memory_cache: bool = True,
    disk_cache_dir: str | PathLike[str] | None = None,
    disk_size_limit_bytes: int | None = None,
    memory_max_entries: float | None = None,
    restrict_pickle: bool = True,
    safe_types: Any = None,
) -> None:
    """Say where the answers of calls outside flows are kept: in a folder, in memory, or nowhere.

    Sets ``settings.journal``. Unlike in DSPy nothing goes to disk before ``disk_cache_dir`` names a folder.
    A flow has a journal of its own.

    Args:
        enable_disk_cache: whether to use the folder.
        enable_memory_cache: whether to keep answers in memory where there is no folder.
        disk_cache_dir: the folder; one process at a time owns it.
        disk_size_limit_bytes: no effect; a journal is bounded by age, see ``open_journal``.
        memory_max_entries: no effect; memory is bounded by bytes, 64 MB.
        restrict_pickle: no effect; answers are JSON, and nothing is ever unpickled.
        safe_types: no effect, as above.

    Raises:
        ConfigurationError: a limit is below 0.
        StateError: the folder cannot be used.

    >>> configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    >>> settings.journal.get(b"any") is None
    True
    >>> configure_cache(enable_disk_cache=False)
    """
    del restrict_pickle, safe_types
    limits = {"disk_size_limit_bytes": disk_size_limit_bytes, "memory_max_entries": memory_max_entries}
    for name, value in limits.items():
        if value is not None and value < 0:
            raise ConfigurationError(f"{name} is {value}; it is at least 0")
    if enable_disk_cache and disk_cache_dir is not None:
        folder = Path(disk_cache_dir).expanduser().resolve()
        with _lock:
            if folder not in _open:
                _open[folder] = opened = open_journal(folder)
                atexit.register(opened.close)
            configure(journal=_open[folder])
    elif enable_memory_cache:
        configure(journal=MemoryJournal(memory_bytes=_BYTES))
    else:
        nothing: Journal = _Nothing()
        configure(journal=nothing)


class _Cache:
    """The answers that are kept in memory."""

    def reset_memory_cache(self) -> None:
        """Forget them, so that the next calls are made; a folder keeps what it has."""
        forget_direct()
        forget_memory()
        if isinstance(settings.journal, MemoryJournal):
            configure(journal=MemoryJournal(memory_bytes=_BYTES))

    def __repr__(self) -> str:
        return f"<cache: {settings.journal or 'memory'}>"


cache: Final = _Cache()
