"""A model server in a process of its own whose answers fail in every way at once.

    python tests/chaos/soak_server.py --seed 7 --log calls.jsonl

For three quarters of the time nine requests in ten fail, in a way drawn from the seed, the question
and how often it was asked, and for two seconds of it nearly all are refused for their number. In the
rest three in ten fail, and for two seconds the server is down. What is answered well is often
answered oddly. The log has one line a request.
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
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.oracle import answer_to
from tests.lm.server import ModelServer, Reply, Seen, completion

_QUESTION = re.compile(r"\[\[ ## question ## \]\]\n(.*?)\n\n", re.DOTALL)
_PAGE = b"<html><body>502 from a proxy</body></html>"
_HTML = (("Content-Type", "text/html"),)

# Faults that pass: the row must come out in the end.
FAULTS: dict[str, float] = {
    **dict.fromkeys(("500", "502", "503", "529", "408", "409"), 2.0),
    **dict.fromkeys(("reset-early", "cut-length", "cut-chunks", "cut-close"), 3.0),
    **dict.fromkeys(("page", "empty", "half", "error-in-200", "no-choices"), 2.0),
    **dict.fromkeys(("silent", "slow-loris", "slow-head"), 0.3),
}
# Answers, but odd ones.
ODD = ("reset-idle", "usage", "gzip", "chunked", "closes", "slow")
STORM = ("429", "429-soon", "429-past", "429-odd", "429-none")
DOWN = ("503", "reset-early", "silent")

# A minute: fair at first, with an outage, then foul, with a storm at the end.
_MINUTE: Final = 60.0
_FAIR: Final = 15.0
_STORM: Final = (56.0, 58.0)
_DOWN: Final = (3.0, 5.0)
FOUL_SHARE: Final = 0.9
_FAIR_SHARE: Final = 0.3
_ODD_SHARE: Final = 0.3


def weather(now: float) -> str:
    """What kind of moment this is: ``foul``, ``fair``, ``storm`` or ``down``."""
    moment = now % _MINUTE
    if _STORM[0] <= moment < _STORM[1]:
        return "storm"
    if moment >= _FAIR:
        return "foul"
    return "down" if _DOWN[0] <= moment < _DOWN[1] else "fair"


def _fault(sky: str, rng: random.Random) -> str | None:
    """What fails at this moment; None where nothing does."""
    if sky == "down":
        return rng.choice(DOWN)
    if sky == "storm":
        return rng.choice(STORM) if rng.random() < FOUL_SHARE else None
    if rng.random() < (FOUL_SHARE if sky == "foul" else _FAIR_SHARE):
        return rng.choices(list(FAULTS), list(FAULTS.values()))[0]
    return None


def reply_to(seen: Seen, rng: random.Random, sky: str) -> tuple[str, Reply]:
    """What happens to one request, and its name."""
    asked = seen.json["messages"]
    kind = _fault(sky, rng)
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
    kind = rng.choice(ODD) if rng.random() < _ODD_SHARE else "good"
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


async def serve(seed: int, log: Path) -> None:
    """Print the port, and serve until standard input is closed."""
    times: Counter[bytes] = Counter()
    file = log.open("a", buffering=1)
    began = time.monotonic()

    def then(seen: Seen) -> Reply:
        digest = hashlib.sha256(seen.body).digest()
        times[digest] += 1
        rng = random.Random(f"{seed} {digest.hex()} {times[digest]}")
        now = time.monotonic() - began
        sky = weather(now)
        kind, reply = reply_to(seen, rng, sky)
        line = {"at": round(now, 3), "ask": digest.hex()[:16], "kind": kind, "sky": sky}
        file.write(json.dumps(line) + "\n")
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
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.seed, given.log))


if __name__ == "__main__":
    main()
