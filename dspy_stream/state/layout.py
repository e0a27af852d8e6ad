"""The version stamp of a state folder, kept in its ``meta`` family."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

import orjson

from dspy_stream.errors import StateCorrupt
from dspy_stream.state.stamp import RESTORE

__all__ = ["LAYOUT", "LAYOUT_KEY", "check_layout", "layout_stamp"]

LAYOUT: Final = 1
LAYOUT_KEY: Final = b"layout"


def check_layout(folder: Path, value: bytes | None, *, empty: bool) -> None:
    """Raise unless the version stamp is this version's; ``empty`` allows none at all.

    Raises:
        StateCorrupt: the layout is older, newer, or not to be read.
    """
    if value is None and empty:
        return
    try:
        stamp = orjson.loads(value or b"")
        layout, package = stamp["layout"], stamp["package"]
        known = type(layout) is int and isinstance(package, str) and layout >= 0
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise StateCorrupt(f"{folder} has no readable version stamp: {RESTORE}")
    if layout < LAYOUT:
        raise StateCorrupt(
            f"{folder} has layout {layout}, written by version {package[:40]}, and this version needs "
            f"{LAYOUT}; finish its runs with that version, or give --state another folder, where finished "
            "calls are paid for again. Nothing was changed"
        )
    if layout > LAYOUT:
        raise StateCorrupt(
            f"{folder} has layout {layout}, written by the newer version {package[:40]}, and this version "
            f"knows {LAYOUT}; use that version, or give --state another folder. Nothing was changed"
        )


def layout_stamp() -> bytes:
    """The version stamp of a new folder."""
    try:
        version = metadata.version("dspy_stream")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return orjson.dumps({"layout": LAYOUT, "package": version})
