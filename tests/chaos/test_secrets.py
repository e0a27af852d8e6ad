"""F39: the key is in the header that carries it and nowhere else, whatever the server says or is logged."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.crash import HERE, Place
from tests.lm.server import ModelServer, Reply, Seen, completion

CANARY = "sk-CANARY-4f1d9c7be2a84b6f9d51"
ROWS = 24


def talk() -> Callable[[Seen], Reply]:
    """Say the key in every way a server can; what may pass is not said again."""
    failed: set[bytes] = set()

    def then(seen: Seen) -> Reply:
        given = seen.headers["authorization"].removeprefix("Bearer ")
        wait = ("Retry-After", "0")
        passing = {
            b"row 2 ": Reply(error(given), status=500, headers=(("x-request-id", given), wait)),
            b"row 4 ": Reply(f"<html>{given}</html>".encode(), headers=(("Content-Type", "text/html"), wait)),
        }
        for row, odd in passing.items():
            if row in seen.body and row not in failed:
                failed.add(row)
                return odd
        return reply(seen)

    return then


def error(given: str) -> bytes:
    """An error object with the key in it."""
    return json.dumps({"error": {"message": f"I do not like what {given} asks", "code": given}}).encode()


def reply(seen: Seen) -> Reply:
    """The answer to one row."""
    given = seen.headers["authorization"].removeprefix("Bearer ")
    assert given == CANARY
    text = seen.body.decode()
    if any(f"row {n} " in text for n in (1, 2, 4)):
        return Reply(error(given), status=400, headers=(("x-request-id", f"of {given}"),))
    if "row 3 " in text:
        return Reply(completion(f"no fields, but the key: {given}"))
    if "row 5 " in text:
        return Reply(error(given), status=401)
    names = ("reasoning", "answer")
    said = "\n\n".join(f"[[ ## {name} ## ]]\nyour key is {given}" for name in names)
    heads = (("x-request-id", given), ("X-RateLimit-Reset-Requests", given))
    return Reply(completion(f"{said}\n\n[[ ## completed ## ]]", model=given, id=given), headers=heads)


@contextmanager
def talkative() -> Iterator[str]:
    """A server in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ModelServer(then=talk())
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield server.url
        assert server.seen, "nothing was asked"
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(folder: Path, numbers: range, expect: int) -> str:
    """One run over these rows; what it said."""
    lines = [json.dumps({"question": f"what is row {n} about"}) for n in numbers]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    with talkative() as api:
        env = {
            **{"OPENAI_API_KEY": CANARY, "CHAOS_API": api, "PYTHONASYNCIODEBUG": "1"},
            **{"CHAOS_LOG": str(folder / "debug.log"), "CHAOS_PROGRAM": str(folder / "program.json")},
        }
        place = Place(folder, flow=HERE / "flows" / "loud.py", env=env, args=("--fresh",))
        process = place.start()
        assert process.wait() == expect, process.stderr
        for verb in (["dlq", "list"], ["dlq", "show"], ["state", "inspect"]):
            place.spawn([*verb, str(place.state_folder), "--json"]).wait()
        return process.stderr


def leaks(folder: Path) -> list[str]:
    """Every file below the folder that holds the key."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


def test_the_key_is_in_no_file_and_on_no_screen(folder: Path) -> None:
    said = run(folder, range(100, 100 + ROWS), 0)
    assert "DEBUG" in said
    assert (folder / "debug.log").stat().st_size > 0
    assert leaks(folder) == []
    assert "***" in (folder / "out.jsonl").read_text(), "the server repeated the key, and it was masked"
    run(folder, range(1, 5), 65)  # every row fails, each in another way
    assert leaks(folder) == []
    refused = run(folder, range(5, 6), 78)
    assert "***" in refused
    assert leaks(folder) == []
