"""local/nearest: right where its demos are, deterministic, and fast enough to stand in for a server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm import LM, LocalLM
from dspy_stream.types import Head, Message, Request

DEMOS = [
    ("Where is my new card? It has not arrived.", "card_arrival"),
    ("My card was stolen yesterday.", "lost_card"),
    ("I want my money back for this purchase.", "refund"),
    ("What is the exchange rate for dollars?", "exchange_rate"),
    ("How do I change my PIN?", "change_pin"),
]


def head(pairs: list[tuple[str, str]], system: str = "Classify.") -> Head:
    messages = [Message("system", system)]
    for asked, answered in pairs:
        messages += [Message("user", asked), Message("assistant", answered)]
    return Head("local/nearest", tuple(messages))


def ask(head: Head, *texts: str, layer: Any = None) -> list[str]:
    made = layer if layer is not None else LocalLM().connect()

    async def go() -> list[str]:
        return [(await made(Request(head, (Message("user", text),)))).text for text in texts]

    return asyncio.run(go())


def chat(text: str) -> str:
    return (
        f"[[ ## text ## ]]\n{text}\n\n"
        "Answer with `[[ ## reason ## ]]`, then `[[ ## intent ## ]]`, and close with `[[ ## completed ## ]]`."
    )


def test_the_nearest_demo_answers() -> None:
    questions = [
        "has my card arrived",
        "somebody stole my card",
        "money back please",
        "dollars rate",
        "new pin",
    ]
    assert ask(head(DEMOS), *questions) == [
        "card_arrival",
        "lost_card",
        "refund",
        "exchange_rate",
        "change_pin",
    ]


def test_answers_are_repeated_word_for_word() -> None:
    answer = "[[ ## intent ## ]]\nrefund\n\n[[ ## completed ## ]]"
    assert ask(
        head([("[[ ## text ## ]]\nmoney back", answer), ("[[ ## text ## ]]\npin", "x")]), chat("the money")
    ) == [answer]


def test_only_the_question_counts() -> None:
    # The reminder of the answer's form has words of its own, and they occur in a demo here.
    demos = [("close the account, reason: completed", "close"), ("stolen phone", "phone")]
    assert ask(head(demos), chat("the phone was taken")) == ["phone"]


def test_no_common_word_gets_the_most_frequent_answer() -> None:
    assert ask(head([*DEMOS, ("I lost it", "lost_card")]), "zzz qqq") == ["lost_card"]


def test_one_demo_is_enough() -> None:
    assert ask(head(DEMOS[:1]), "new card", "something else") == ["card_arrival", "card_arrival"]


def test_earlier_turns_of_the_request_are_demos_too() -> None:
    tail = (Message("user", "blue whale"), Message("assistant", "animal"), Message("user", "a whale"))

    async def go() -> str:
        return (await LocalLM().connect()(Request(head(DEMOS), tail))).text

    assert asyncio.run(go()) == "animal"


def test_without_demos_the_question_is_repeated_in_every_field() -> None:
    nothing = head([])
    json_form = (
        "[[ ## text ## ]]\nhello\n\nAnswer with one JSON object that has the keys `a`, `b`, in this order."
    )
    assert ask(nothing, "hello", chat("hello"), json_form) == [
        "hello",
        "[[ ## reason ## ]]\nhello\n\n[[ ## intent ## ]]\nhello\n\n[[ ## completed ## ]]",
        '{"a":"hello","b":"hello"}',
    ]


def test_the_index_is_made_once_a_head() -> None:
    made = head(DEMOS)
    ask(made, "pin")
    index = made.memo["local/nearest"]
    ask(made, "card")
    assert made.memo["local/nearest"] is index


def test_tokens_are_counted_and_cost_nothing() -> None:
    async def go() -> Any:
        return await LocalLM().connect()(Request(head(DEMOS), (Message("user", "x" * 400),)))

    response = asyncio.run(go())
    assert response.usage.prompt_tokens >= 100
    assert (response.usage.cost, response.model, response.choices[0].finish_reason) == (
        0.0,
        "local/nearest",
        "stop",
    )


def test_the_wait_is_the_clock_s() -> None:
    clock = FakeClock()
    ask(head(DEMOS), "a", "b", layer=LocalLM(latency=0.25).connect(clock=clock))
    assert clock.slept == [0.25, 0.25]


def test_it_is_one_model_under_both_names() -> None:
    assert LM("local/nearest")("hello") == LocalLM()("hello") == ["hello"]
    assert LocalLM() == LocalLM()
    assert LocalLM() != LocalLM(latency=1.0)
    assert LocalLM(latency=1.0).copy(temperature=0.5, rollout_id=3).copy(
        temperature=None, rollout_id=None
    ) == LocalLM(latency=1.0)
    with pytest.raises(LMConfigurationError, match="local/nearest"):
        LocalLM("local/farthest")


_PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.lm.test_local import ask, head, invented
pairs, questions = invented(60)
print("|".join(ask(head(pairs), *questions)))
"""


def invented(count: int) -> tuple[list[tuple[str, str]], list[str]]:
    rng = random.Random(3)
    words = [f"word{number}" for number in range(80)]
    pairs = [(" ".join(rng.choices(words, k=6)), f"answer {number}") for number in range(count)]
    return pairs, [" ".join(rng.choices(words, k=5)) for _ in range(count)]


def test_answers_do_not_depend_on_the_process() -> None:
    root = str(Path(__file__).resolve().parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, root],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "answer" in outputs.pop()


def test_more_demos_make_it_better_on_real_messages() -> None:
    folder = Path(__file__).resolve().parents[2] / "datasets" / "bank_messages"
    if not (folder / "test.jsonl").exists():
        pytest.skip("the sample messages are not here")
    files = [(folder / f"{part}.jsonl").read_text("utf-8") for part in ("train", "test")]
    train, test = ([json.loads(line) for line in text.splitlines()] for text in files)

    def accuracy(count: int) -> float:
        pairs = [(row["text"], row["intent"]) for row in train[:count]]
        answers = ask(head(pairs), *[row["text"] for row in test])
        return sum(answer == row["intent"] for answer, row in zip(answers, test, strict=True)) / len(test)

    few, many = accuracy(10), accuracy(len(train))
    assert few < many
    assert many > 0.45
