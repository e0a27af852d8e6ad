"""A model server in a process of its own whose answers fail in every way at once.

    python tests/chaos/soak_server.py --seed 7 --rate 0.3 --log calls.jsonl

Of all requests the given part meets a fault of its own; what it is, is drawn from the seed, the
question and how often it was asked. Besides, for two seconds in every twenty most requests are
refused for their number, and for two others the server is down. The log has one line a request.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.oracle import answer_to
from tests.lm.server import ModelServer, Reply, Seen, completion

_QUESTION = re.compile(r"\[\[ ## question ## \]\]\n(.*?)\n\n", re.DOTALL)
_PAGE = b"<html><body>502 from a proxy</body></html>"
_HTML = (("Content-Type", "text/html"),)

# Faults that pass: the row must come out in the end.
PASSING: dict[str, float] = {
    **dict.fromkeys(("500", "502", "503", "529", "408", "409"), 2.0),
    **dict.fromkeys(("reset-early", "reset-idle", "cut-length", "cut-chunks", "cut-close"), 3.0),
    **dict.fromkeys(("page", "empty", "half", "error-in-200", "no-choices"), 2.0),
    **dict.fromkeys(("silent", "slow-loris", "slow-head"), 0.3),
    **dict.fromkeys(("usage", "gzip", "chunked", "closes", "slow"), 4.0),  # answers, but odd ones
}


STORM = ("429", "429-soon", "429-past", "429-odd", "429-none")
DOWN = ("503", "reset-early", "silent")
_PERIOD, _STORM, _DOWN = 20.0, (6.0, 8.0), (14.0, 16.0)


def _weather(now: float, rng: random.Random) -> str | None:
    """What happens to all or most at this moment."""
    moment = now % _PERIOD
    if _STORM[0] <= moment < _STORM[1] and rng.random() < 0.9:
        return rng.choice(STORM)
    if _DOWN[0] <= moment < _DOWN[1]:
        return rng.choice(DOWN)
    return None


def reply_to(seen: Seen, rng: random.Random, rate: float, now: float) -> tuple[str, Reply]:
    """What happens to one request, and its name."""
    asked = seen.json["messages"]
    kind = _weather(now, rng)
    if kind is not None:
        return kind, _made(kind, completion())
    questions = _QUESTION.findall("\n".join(m["content"] for m in asked if m["role"] == "user"))
    question = questions[-1] if questions else ""
    good = completion(
        f"[[ ## answer ## ]]\n{answer_to('answer', {'question': question})}\n\n[[ ## completed ## ]]"
    )
    if "@refused" in question:
        return "refused", Reply(b'{"error":{"message":"not this one"}}', status=400)
    if "@garbage" in question:
        return "garbage", Reply(completion("I would rather not."))
    if "@large" in question:
        return "large", Reply(completion("x" * 9_000_000))
    kind = "good"
    if rng.random() < rate:
        kind = rng.choices(list(PASSING), list(PASSING.values()))[0]
    return kind, _made(kind, good)


def _made(kind: str, good: bytes) -> Reply:
    error = b'{"error":{"message":"try again"}}'
    waits = {"429": "1", "429-soon": "0", "429-past": "-5", "429-odd": "abc"}
    if kind.startswith("429"):
        headers = (("Retry-After", waits[kind]),) if kind in waits else ()
        return Reply(error, status=429, headers=headers)
    if kind.isdecimal():
        return Reply(error, status=int(kind))
    table = {
        "reset-early": Reply(framing="none", end="reset"),
        "reset-idle": Reply(good, reset_on_next=True),
        "cut-length": Reply(good, declared=len(good) + 50, end="close"),
        "cut-chunks": Reply(good[:-20], framing="chunked", cut=True, end="close"),
        "cut-close": Reply(good[:-30], framing="close", end="close"),
        "page": Reply(_PAGE, headers=_HTML),
        "empty": Reply(b""),
        "half": Reply(good[: len(good) // 2]),
        "error-in-200": Reply(error),
        "no-choices": Reply(b'{"choices":[]}'),
        "silent": Reply(silent=True),
        "slow-loris": Reply(good, pieces=100, gap=0.2),
        "slow-head": Reply(good, delay=6.0),
        "usage": Reply(
            completion(
                json.loads(good)["choices"][0]["message"]["content"],
                usage={"prompt_tokens": -1, "completion_tokens": 1e30},
            )
        ),
        "gzip": Reply(gzip.compress(good), headers=(("Content-Encoding", "gzip"),)),
        "chunked": Reply(good, framing="chunked", pieces=5),
        "closes": Reply(good, framing="close", end="close"),
        "slow": Reply(good, delay=0.3),
    }
    return table.get(kind, Reply(good))


async def serve(seed: int, rate: float, log: Path) -> None:
    """Print the port, and serve until standard input is closed."""
    times: Counter[bytes] = Counter()
    file = log.open("a", buffering=1)
    began = time.monotonic()

    def then(seen: Seen) -> Reply:
        digest = hashlib.sha256(seen.body).digest()
        times[digest] += 1
        rng = random.Random(f"{seed} {digest.hex()} {times[digest]}")
        kind, reply = reply_to(seen, rng, rate, time.monotonic() - began)
        file.write(json.dumps({"ask": digest.hex()[:16], "kind": kind}) + "\n")
        server.seen.clear()
        return reply

    server = ModelServer(then=then)
    async with server:
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.seed, given.rate, given.log))


if __name__ == "__main__":
    main()
