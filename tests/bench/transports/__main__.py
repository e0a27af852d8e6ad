"""HTTP transports under one interface, side by side: what a request costs, and how each behaves.

    python -m tests.bench.transports [-o FILE] [--only plain,tls,http2,behaviour] [NAME ...]
    python -m tests.bench.transports --table FILE ...

The first measures the transports named (all of them; those not installed are left out with the
reason) and adds a line of JSON for each finding to FILE; the second prints such files as one table.
The server is a process of its own on the last core, the client is on the first; the behaviours are
tried against sockets of a few lines. Every figure is of one process with nothing else running, if
you let nothing else run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

from behaviour import trials  # noqa: E402
from candidates import CANDIDATES, not_installed, versions  # noqa: E402
from cost import COSTS  # noqa: E402
from servers import Authority, pin  # noqa: E402

KINDS = (*COSTS, "behaviour")


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """On a loop of its own, so that what one trial leaves behind does not meet the next."""
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


def measure(name: str, kinds: list[str], folder: Path, told: Callable[[str, str], None]) -> None:
    """One transport's findings."""
    authority, other = (Authority(folder / which) for which in ("trusted", "other"))
    # Before a library is imported: aiohttp looks at it then, once.
    os.environ["SSL_CERT_FILE"] = str(authority.certificate)

    async def costs(kind: str) -> None:
        async for what, value in COSTS[kind](name, authority):
            told(what, value)

    for kind in kinds:
        if kind != "behaviour":
            run(lambda kind=kind: costs(kind))
            continue
        for what, trial in trials(authority, other).items():
            try:
                told(what, run(lambda trial=trial: asyncio.wait_for(trial(name), 20)))
            except Exception as error:  # noqa: BLE001  its name is the finding
                told(what, f"fails: {type(error).__name__}")


def table(files: list[Path]) -> str:
    """The findings as Markdown: a column for each transport."""
    found: dict[str, dict[str, str]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            name, what, value = json.loads(line)
            found.setdefault(what, {})[name] = value
    names = [name for name in CANDIDATES if any(name in row for row in found.values())]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [
        f"| {what} | {' | '.join(row.get(name, '') for name in names)} |" for what, row in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Print one line a finding, or a table of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-o", "--output", type=Path, default=Path(os.devnull))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--table", type=Path, nargs="+")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    if unknown := [name for name in given.names if name not in CANDIDATES] or set(given.only) - set(KINDS):
        raise SystemExit(f"not known: {', '.join(unknown)}; there are {', '.join((*CANDIDATES, *KINDS))}")
    if not given.one:
        print(versions())
        for name in given.names or list(CANDIDATES):  # a process each: nothing of one is left in another
            again = [*("--one", "-o", str(given.output)), *("--only", ",".join(given.only)), name]
            subprocess.run([sys.executable, str(HERE / "__main__.py"), *again], check=False)
        return
    name = given.names[0]
    logging.disable()  # connections that a library leaves behind
    if missing := not_installed(name):
        print(f"{name}: {missing} is not installed")
        return
    pin(0, client=True)
    print(name, flush=True)
    with tempfile.TemporaryDirectory() as folder, open(given.output, "a", encoding="utf-8") as file:

        def told(what: str, value: str) -> None:
            print(f"  {what:42s} {value}", flush=True)
            file.write(json.dumps([name, what, value]) + "\n")

        measure(name, given.only, Path(folder), told)


if __name__ == "__main__":
    main()
