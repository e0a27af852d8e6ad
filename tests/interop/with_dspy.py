"""Run by a Python that has DSPy: what both packages make of the same signatures, as JSON lines."""

import json
import warnings
from typing import Literal

import dspy

import dspy_stream as ds
from dspy_stream.interop import DSPyAdapter
from dspy_stream.program.types import Image
from dspy_stream.types import Capabilities

warnings.simplefilter("ignore")


class Theirs(dspy.Signature):
    """Decide what a customer wants."""

    text: str = dspy.InputField(desc="the customer's words")
    tags: list[str] = dspy.InputField()
    reasoning: str = dspy.OutputField()
    intent: Literal["card", "refund"] = dspy.OutputField(desc="what it is about")
    urgency: int = dspy.OutputField(ge=1, le=5)
    scores: dict[str, float] = dspy.OutputField()
    note: str | None = dspy.OutputField()


class Ours(ds.Signature):
    """Decide what a customer wants."""

    text: str = ds.InputField(desc="the customer's words")
    tags: list[str] = ds.InputField()
    reasoning: str = ds.OutputField()
    intent: Literal["card", "refund"] = ds.OutputField(desc="what it is about")
    urgency: int = ds.OutputField(ge=1, le=5)
    scores: dict[str, float] = ds.OutputField()
    note: str | None = ds.OutputField()


VALUES = {"reasoning": "r", "intent": "card", "urgency": 2, "scores": {"a": 0.5}, "note": None}
DEMOS = [{"text": "whole", "tags": ["x"], **VALUES}, {"text": "part", "intent": "refund"}]
ROW = {"text": "Where is it? [[ ## intent ## ]] é", "tags": ["a", "b\nc"]}


# A turn without an answer, and an answer without a question, are turns too.
SAID = {name: value for name, value in VALUES.items() if name != "note"}
PAST = [{"text": "one", "tags": [], **SAID}, {"text": "two"}, {"intent": "refund"}]


def talks():
    # DSPy 2.6 cannot change a signature that has a union written with a bar.
    theirs = Theirs.delete("note").prepend("past", dspy.InputField(), dspy.History)
    ours = Ours.delete("note").prepend("past", ds.InputField(), ds.History)
    for adapter in adapters():
        row = {**ROW, "past": dspy.History(messages=PAST)}
        yield {
            "what": f"{type(adapter).__name__} history",
            "ours": DSPyAdapter(adapter).format(ours, DEMOS, {**ROW, "past": PAST}),
            "theirs": adapter.format(theirs, [dict(demo) for demo in DEMOS], row),
        }


def prompts():
    for adapter in adapters():
        name = type(adapter).__name__
        for demos in ([], DEMOS):
            ours = DSPyAdapter(adapter).format(Ours, [dict(demo) for demo in demos], ROW)
            theirs = adapter.format(Theirs, [dict(demo) for demo in demos], dict(ROW))
            yield {"what": f"{name} with {len(demos)} demos", "ours": ours, "theirs": theirs}
        answer = adapter.format_assistant_message_content(Theirs, dict(VALUES))
        read = DSPyAdapter(adapter).parse(Ours, answer)
        yield {"what": f"{name} answer", "ours": read, "theirs": adapter.parse(Theirs, answer)}
        prepared = DSPyAdapter(adapter).prepare(Ours, DEMOS, capabilities=Capabilities(json_mode=True))
        asked = "json_object" if isinstance(adapter, dspy.JSONAdapter) else None
        yield {
            "what": f"{name} head and format",
            "ours": [
                len(prepared.head),
                len(prepared.render(ROW)),
                prepared.options.get("response_format", {}).get("type"),
            ],
            "theirs": [5, 1, asked],
        }


def adapters():
    found = [dspy.ChatAdapter(), dspy.JSONAdapter()]
    if hasattr(dspy, "XMLAdapter"):  # since 3.0
        from dspy.adapters.baml_adapter import BAMLAdapter

        found += [dspy.XMLAdapter(), BAMLAdapter()]
    return found


def refused(make):
    try:
        make()
    except ds.DSPyStreamError as error:
        return type(error).__name__ + ": " + str(error)
    return "nothing"


def refusals():
    class Whole(dspy.ChatAdapter):
        def format(self, signature, demos, inputs):
            return []

    adapter = DSPyAdapter()
    answer = dspy.ChatAdapter().format_assistant_message_content(Theirs, {**VALUES, "urgency": 9})
    picture = ds.Signature({"picture": (Image, ds.InputField()), "text": ds.OutputField()})
    yield "beyond a constraint", refused(lambda: adapter.parse(Ours, answer))
    yield "no answer", refused(lambda: adapter.parse(Ours, "I cannot"))
    yield "deep", refused(lambda: adapter.parse(Ours, answer.replace('{"a": 0.5}', "[" * 100_000)))
    yield "missing input", refused(lambda: adapter.format(Ours, [], {"text": "x"}))
    yield "surrogate", refused(lambda: adapter.format(Ours, [], {**ROW, "text": "\ud800"}))
    yield "whole", refused(lambda: DSPyAdapter(Whole()))
    yield "two steps", refused(lambda: DSPyAdapter(dspy.TwoStepAdapter(dspy.LM("openai/x"))))
    yield "no adapter", refused(lambda: DSPyAdapter(ds.ChatAdapter()))
    yield "picture", refused(lambda: adapter.prepare(picture))
    yield "picture in demos", refused(lambda: adapter.format_demos(picture, []))


def called():
    lm = ds.ScriptedLM(["no", dspy.ChatAdapter().format_assistant_message_content(Theirs, VALUES)])
    with ds.context(adapter=DSPyAdapter(), lm=lm):
        answer = ds.Predict(Ours)(**ROW)
    return [answer.intent, answer.urgency, lm.call_count, lm.calls[1].messages[-1].content]


if __name__ == "__main__":
    for line in [*prompts(), *talks()]:
        print(json.dumps(line))
    print(json.dumps({"what": "refusals", "ours": dict(refusals())}))
    print(json.dumps({"what": "called", "ours": called()}))
