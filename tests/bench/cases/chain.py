"""A ChainOfThought with eight demos and typed outputs, on a stub that answers at once. BENCH_HOW says whose.

ours, dspy    called row by row, as a script does
flow          a step of a flow from memory to memory (ours)
"""

import logging
import os
import time
from types import SimpleNamespace
from typing import Literal

from common import ROWS, cpu, report

HOW = os.environ["BENCH_HOW"]
if HOW == "dspy":
    import dspy as ds

    logging.disable(logging.WARNING)
else:
    import dspy_stream as ds
    from dspy_stream.stream.sinks import MemorySink
    from dspy_stream.types import Choice, Response, Usage

TEXT = """[[ ## reasoning ## ]]
The customer says that the card has not come although two weeks have passed, and is in a hurry.

[[ ## intent ## ]]
card_arrival

[[ ## urgency ## ]]
4

[[ ## topics ## ]]
["card", "delivery", "waiting"]

[[ ## confirmed ## ]]
true

[[ ## completed ## ]]"""


class Triage(ds.Signature):
    """Decide what a bank customer wants and how urgent it is."""

    text: str = ds.InputField()
    channel: str = ds.InputField()
    intent: Literal["card_arrival", "lost_card", "refund", "top_up"] = ds.OutputField()
    urgency: int = ds.OutputField(desc="5 is an emergency")
    topics: list[str] = ds.OutputField()
    confirmed: bool = ds.OutputField()


def demo(number):
    return ds.Example(
        text=f"This is demo number {number}: where is the card that I ordered two weeks ago?",
        channel="mail",
        reasoning=f"Somebody waits for a card; this is number {number}.",
        intent="card_arrival",
        urgency=number % 5 + 1,
        topics=["card", "delivery"],
        confirmed=number % 2 == 0,
    ).with_inputs("text", "channel")


def row(number):
    return {
        "text": f"My card number {number} has still not come, and I need it for a trip.",
        "channel": "chat",
    }


def stub():
    """A model that has every answer at once, as each side writes one."""
    if HOW == "dspy":
        usage = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
        answer = SimpleNamespace(
            choices=[SimpleNamespace(message=SimpleNamespace(content=TEXT))], usage=usage, model="stub"
        )

        class Stub(ds.BaseLM):
            def forward(self, prompt=None, messages=None, **kwargs):
                return answer

            async def aforward(self, prompt=None, messages=None, **kwargs):
                return answer

        return Stub("stub")
    response = Response((Choice(TEXT, "stop"),), Usage(900, 60), "stub")

    class AtOnce:
        def peek(self, request):
            return response

        async def __call__(self, request):
            return response

        async def aclose(self):
            pass

    class Stub(ds.BaseLM):
        def connect(self, *_args, **_kwargs):
            return AtOnce()

    return Stub("stub")


def called(program, rows):
    right = 0
    for each in rows:
        made = program(**each)
        right += (made.intent, made.urgency, made.topics[0], made.confirmed) == (
            "card_arrival",
            4,
            "card",
            True,
        )
    return right


def flowed(program, rows):
    sink = MemorySink()
    ds.Stream.from_iterable(rows, name="chain").through(program).write(sink).run(state=None, quiet=True)
    return sum(each["urgency"] == 4 for each in sink.rows)


program = ds.ChainOfThought(Triage)
program.predict.demos = [demo(number) for number in range(8)]
# Neither side keeps what it was asked: that would be measured with it.
ds.configure(lm=stub(), disable_history=True)
run = flowed if HOW == "flow" else called
run(program, [row(50_000 + number) for number in range(100)])
rows = [row(number) for number in range(ROWS)]
began, used = time.perf_counter(), cpu()
right = run(program, rows)
report(time.perf_counter() - began, cpu() - used, ROWS, right)
