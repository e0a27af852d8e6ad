"""Run by a Python that has DSPy: its programs as steps of flows; what came of it, as JSON lines."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import dspy
from programs import (
    OLD,
    Alone,
    Called,
    Careless,
    Later,
    Louder,
    Mixed,
    MixedLater,
    Model,
    Threads,
    Triage,
    Two,
    awaited,
    double,
    number_in,
    outer,
    plain_two,
    questions,
    two,
)

import dspy_stream as ds
from dspy_stream import errors
from dspy_stream.interop import DSPyModule, StreamLM
from dspy_stream.stream.digests import module_digest
from dspy_stream.types import Capabilities, Choice, Response, Usage

FOLDER = Path(tempfile.mkdtemp())
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def through(module, rows, model, **options):
    return ds.Stream.from_iterable(rows).through(module, **options).to_list(lm=model.lm)


def letters(module, rows, model, name, **options):
    out = FOLDER / f"{name}.jsonl"
    flow = ds.Stream.from_iterable(rows, name=name).through(module, **options)
    flow = flow.limit_failures(consecutive=None, ratio=None)
    report = flow.write(out, dead_letters=FOLDER / f"{name}.dead.jsonl").run(
        lm=model.lm, state=FOLDER / f"{name}.state", quiet=True
    )
    dead = [json.loads(line) for line in (FOLDER / f"{name}.dead.jsonl").read_text().splitlines()]
    return report, {f"{letter['stage']}:{letter['source']['offset']}": letter["error"] for letter in dead}


def plain(prediction):
    found = {}
    for name, value in prediction.items():
        found[name] = value.model_dump() if hasattr(value, "model_dump") else value
    return found


@scenario
def same():
    """What DSPy says by itself, and as a step."""
    triage = [{"text": f"number {number}", "tags": ["a"]} for number in range(4)]
    programs = {
        "predict": (lambda: dspy.Predict("question -> answer"), questions(4)),
        "typed": (lambda: dspy.Predict(Triage), triage),
        "thinking": (lambda: dspy.ChainOfThought("question -> answer"), questions(4)),
        "several": (lambda: dspy.Predict("question -> answer", n=3), questions(4)),
        "agent": (lambda: dspy.ReAct("question -> answer", tools=[double], max_iters=3), questions(4)),
        "forward": (Two, questions(4)),
        "aforward": (Later, questions(4)),
        "parallel": (Threads, questions(4)),
        "called": (Called, questions(4)),
        "louder": (lambda: Louder("question -> answer"), questions(4)),
    }
    for adapter in (None, dspy.JSONAdapter()):
        for name, (make, rows) in programs.items():
            alone, model, program = Alone(), Model(), make()
            names = ["text", "tags"] if rows is triage else ["question"]
            dspy.configure(lm=alone, adapter=adapter)
            theirs = [plain(program(**{name: row[name] for name in names})) for row in rows]
            dspy.configure(lm=None)
            found = through(make(), rows, model, order="ordered")
            ours = [{name: row[name] for name in their} for row, their in zip(found, theirs, strict=True)]
            kept = [
                all(row[key] == value for key, value in given.items())
                for row, given in zip(found, rows, strict=True)
            ]
            ours = [plain(row) for row in ours]
            order = {json.dumps(asked) for asked in alone.asked}
            yield (
                f"{name}{' as JSON' if adapter else ''}",
                {
                    "ours": ours,
                    "theirs": theirs,
                    "prompts": order == {json.dumps(asked) for asked in model.asked},
                    "calls": [len(alone.asked), len(model.asked)],
                    "kept": all(kept),
                },
            )
    dspy.configure(adapter=None)


@scenario
def talks():
    """A conversation in a row, as an object or as data, given to a predictor or through a forward."""
    talk = dspy.Signature("question -> answer").append("past", dspy.InputField(), dspy.History)

    class Chat(dspy.Module):
        def __init__(self):
            super().__init__()
            self.said = dspy.Predict(talk)

        def forward(self, question, past):
            assert len(past.messages) < 2
            return self.said(question=question, past=past)

    turns = [{"question": "What is number 1?", "answer": "A1"}]
    pasts = [dspy.History(messages=turns), {"messages": turns}, {"messages": []}]
    rows = [{**row, "past": past} for row, past in zip(questions(3), pasts, strict=True)]
    for what, program in (
        ("predictor", dspy.Predict("question, past: dspy.History -> answer")),
        ("module", Chat()),
    ):
        model = Model()
        found = through(program, rows, model, order="ordered")
        asked = [[message["role"] for message in messages] for messages in model.asked]
        yield what, [[row["answer"] for row in found], sorted(asked, key=len)]


@scenario
def overlap():
    for isolation in ("inline", "thread") if not OLD else ("thread",):
        model, program = (
            Model(latency=0.1),
            DSPyModule(dspy.Predict("question -> answer"), isolation=isolation),
        )
        through(program, questions(1), Model())
        began = time.perf_counter()
        rows = through(program, questions(200), model, capacity=50, order="ordered")
        yield (
            isolation,
            {
                "seconds": time.perf_counter() - began,
                "most": model.most,
                "right": [row["answer"] for row in rows] == [f"A{number}" for number in range(200)],
            },
        )


@scenario
def apart():
    """Rows do not mix: each has its own answers and settings, whatever happens in between."""
    for kind in (Two, Later, Threads):
        rows = through(kind(), questions(100), Model(latency=0.02), capacity=40, order="ordered")
        right = [
            row["seen"] == row["question"] and row["answer"] == row["hint"] == f"A{row['other']}"
            for row in rows
        ]
        yield kind.__name__, [len(rows), all(right), dspy.settings.get("mark")]


@scenario
def mixed():
    """Threads, loops and coroutines of the program's own."""
    for kind in (Mixed, MixedLater, Careless):
        model = Model(latency=0.02)
        rows = through(kind(), questions(30), model, capacity=10, order="ordered")
        yield kind.__name__, [row["answer"] == f"A{row['other']}" for row in rows].count(True)

    def fail(request):
        return "no" if request.rollout_id is None and "number 1?" in request.messages[-1].content else None

    for kind in (Threads, Mixed):
        model = Model(fail=fail)
        report, _ = letters(kind(), questions(3), model, f"spoiled{kind.__name__}", retries=2)
        yield f"{kind.__name__} again", [report.rows_out, report.dead_letters]


@scenario
def dead_letters():
    def fail(request):
        number = number_in(request.messages[-1].content) if "number" in request.messages[-1].content else -1
        if number == 3:
            return "I do not know"
        if number == 4:
            return errors.LMInvalidRequestError("too rude", status=400)
        if number == 6 and not hasattr(fail, "once"):
            fail.once = True
            return errors.ContextWindowExceededError("too long", status=400)
        return None

    class Picky(Two):
        def forward(self, question):
            if "number 5" in question:
                raise KeyError("five")
            return super().forward(question=question)

    rows = [*questions(8), {"text": "number 9"}]
    report, found = letters(Picky(), rows, Model(fail=fail), "dead")
    yield "counts", [report.rows_in, report.rows_out, report.dead_letters]
    yield "errors", found
    calls = []

    def unreadable_at_first(request):
        calls.append(request.rollout_id)
        return "no" if len(calls) < 3 else None

    report, found = letters(
        dspy.Predict("question -> answer"), questions(1), Model(fail=unreadable_at_first), "again", retries=3
    )
    yield "tried again", [report.rows_out, len(calls), len(set(calls)) > 1]

    def stop(_request):
        return errors.LMAuthError("no such key", status=401)

    try:
        through(Two(), questions(4), Model(fail=stop))
    except errors.LMAuthError as error:
        yield "stops", str(error)

    class Hopeful(Two):
        def forward(self, question):
            try:
                return super().forward(question=question)
            except Exception:  # noqa: BLE001 - as some programs do
                return dspy.Prediction(answer="whatever")

    try:
        through(Hopeful(), questions(4), Model(fail=stop))
    except errors.LMAuthError as error:
        yield "stops a careless program", str(error)


@scenario
def money():
    """A budget ends the run, and nothing that was paid is paid again."""
    model = Model()
    flow = ds.Stream.from_iterable(questions(30), name="money").through(Two(), capacity=5)
    flow = flow.write(FOLDER / "money.jsonl")
    state = FOLDER / "money.state"
    try:
        flow.run(lm=model.lm, state=state, quiet=True, max_calls=20)
    except errors.BudgetExceeded as error:
        yield "refused", [error.limit, len(model.asked), error.report.dead_letters]
    report = flow.run(lm=model.lm, state=state, quiet=True, max_calls=100)
    yield "resumed", [report.rows_out, len(model.asked), report.calls, len(report.usage)]
    again = flow.run(lm=model.lm, state=state, quiet=True, fresh=True)
    yield "journal", [again.rows_out, again.hits, len(model.asked)]


@scenario
def models():
    """Which model is asked."""
    program = Two()
    program.first.lm = dspy.LM("local/nearest", temperature=0.5)
    program.first.demos = [
        dspy.Example(question="What is number 1?", answer="from a demo").with_inputs("question")
    ]
    model = Model()
    yield "own", through(program, questions(1), model)[0]["hint"]
    yield "run", len(model.asked)
    dspy.configure(lm=dspy.LM("local/nearest"))
    program.second.predict.demos = [dspy.Example(question="q", hint="h", reasoning="r", answer="configured")]
    yield "configured", ds.Stream.from_iterable(questions(1)).through(program).to_list()[0]["answer"]
    dspy.configure(lm=Alone())
    yield "instead", [row["answer"] for row in through(Two(), questions(2), model)]
    asks = said(lambda: ds.Stream.from_iterable(questions(1)).through(Two()).to_list())
    dspy.configure(lm=None)
    refused = {"configured": asks}
    for name, lm in (
        ("custom", Alone()),
        ("unknown", dspy.LM("nobody/model")),
        ("keyless", dspy.LM("openai/x")),
    ):
        program = Two()
        program.first.lm = lm
        refused[name] = said(lambda program=program: through(program, questions(1), model))
    program = Two()
    program.judge = dspy.LM("local/nearest")
    refused["wild"] = said(lambda: through(program, questions(1), model))
    refused["none"] = said(lambda: ds.Stream.from_iterable(questions(1)).through(Two()).to_list())
    refused["part"] = said(lambda: ds.Predict("question -> answer") | Two())
    refused["class"] = said(lambda: DSPyModule(ds.Predict("a -> b")))
    refused["split"] = said(lambda: ds.Stream.from_iterable([]).through(dspy.Example()))
    yield "refused", refused
    program.judge = StreamLM("local/nearest")
    yield "allowed", len(through(program, questions(1), model))


def said(make):
    try:
        made = make()
    except errors.DSPyStreamError as error:
        return f"{type(error).__name__}: {error}"
    return repr(made)


@scenario
def agents():
    agent = dspy.ReAct("question -> answer", tools=[awaited()], max_iters=3)
    rows = through(agent, questions(5), Model(), order="ordered")
    yield "async tools", [row["trajectory"]["observation_0"] for row in rows]
    module = DSPyModule(agent, isolation="thread")
    rows = through(module, questions(5), Model(), order="ordered")
    yield "async tools in threads", [row["trajectory"]["observation_0"] for row in rows]
    failed = []

    def too_long(request):
        text = request.messages[-1].content
        if "observation_0" in text and "next_thought" in text and not failed:
            failed.append(text)
            return errors.ContextWindowExceededError("too long", status=400)
        return None

    agent = dspy.ReAct("question -> answer", tools=[double], max_iters=4)
    rows = through(agent, questions(1), Model(fail=too_long))
    yield "shortened", [len(failed), rows[0]["answer"]]

    def reward(_args, prediction):
        return 1.0 if prediction.answer == "third" else 0.0

    seen = []

    def third(request):
        seen.append(request.rollout_id)
        words = {1: "second", 2: "third"}.get(request.rollout_id, "first")
        return f"[[ ## answer ## ]]\n{words}\n\n[[ ## completed ## ]]"

    best = dspy.BestOfN(dspy.Predict("question -> answer"), N=5, reward_fn=reward, threshold=1.0)
    if not OLD:
        rows = through(best, questions(2), Model(fail=third), order="ordered")
        yield "best", [[row["answer"] for row in rows], sorted(seen, key=str)]
    else:
        rows = through(best, questions(2), Model(), order="ordered")
        yield "best", [[row["answer"] for row in rows], []]


@scenario
def threads():
    class Sleepy(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question):
            time.sleep(5.0 if "number 0" in question else 0.05)
            return self.ask(question=question)

    began = time.perf_counter()
    module = DSPyModule(Sleepy(), isolation="thread")
    report, found = letters(module, questions(40), Model(), "sleepy", timeout=1.0, capacity=40)
    yield "blocking code", [report.rows_out, sorted(found), time.perf_counter() - began]
    yield "inline", said(lambda: through(DSPyModule(Threads(), isolation="inline"), questions(1), Model()))
    yield "choice", said(lambda: DSPyModule(Threads(), isolation="process"))


@scenario
def identity():
    def digest(program):
        return module_digest(DSPyModule(program))

    def made(change=None, kind=Two):
        program = kind()
        if change is not None:
            change(program)
        return digest(program)

    def demos(program):
        program.first.demos = [dspy.Example(question="q", answer="a")]

    def words(program):
        program.first.signature = program.first.signature.with_instructions("Other words.")

    def types(program):
        program.first.signature = dspy.Signature("question -> answer: int")

    def config(program):
        program.first.config = {"temperature": 1.0}

    def lm(program):
        program.first.lm = dspy.LM("local/nearest", temperature=0.1)

    class Other(Two):
        def forward(self, question):
            return self.first(question=question)

    Other.__qualname__, Other.__module__ = Two.__qualname__, Two.__module__
    found = [made(), made(demos), made(words), made(types), made(config), made(lm), made(kind=Other)]
    yield "same", made() == found[0]
    yield "different", [len(set(found)), len(found)]
    used = Two()
    through(used, questions(3), Model())
    yield "after use", digest(used) == found[0]
    program, path = DSPyModule(Two()), FOLDER / "saved.json"
    demos(program.program)
    words(program.program)
    program.save(path)
    loaded = DSPyModule(Two())
    loaded.load(path)
    yield "loaded", module_digest(loaded) == module_digest(program)
    yield "pickles", [said(lambda: loaded.load("x.pkl")), said(lambda: program.save("x.pkl"))]
    flow = ds.Stream.from_iterable(questions(20), name="changed").through(Two()).write(FOLDER / "c.jsonl")
    try:
        flow.run(lm=Model().lm, state=FOLDER / "changed.state", quiet=True, max_calls=5)
    except errors.BudgetExceeded:
        pass
    changed = Two()
    demos(changed)
    flow = ds.Stream.from_iterable(questions(20), name="changed").through(changed).write(FOLDER / "c.jsonl")
    yield "changed", said(lambda: flow.run(lm=Model().lm, state=FOLDER / "changed.state", quiet=True))


@scenario
def nothing_is_kept():
    from dspy.clients import base_lm

    program = Two()
    before = len(base_lm.GLOBAL_HISTORY), len(dspy.settings.trace or [])
    through(program, questions(20), Model())
    after = len(base_lm.GLOBAL_HISTORY), len(dspy.settings.trace or [])
    parts = [program, *(part for _, part in program.named_predictors())]
    yield "history", [before == after, [len(part.history) for part in parts]]
    dspy.configure(track_usage=True)
    with ds.context(lm=ds.ScriptedLM(lambda _: Response((Choice(WHOLE, "stop"),), Usage(7, 2)), cache=True)):
        first = DSPyModule(program)(question="number 1")
        second = DSPyModule(program)(question="number 1")
    dspy.configure(track_usage=False)
    yield "usage", [first.get_lm_usage(), second.get_lm_usage()]


class Capable(ds.ScriptedLM):
    capabilities = Capabilities(structured_outputs=True, json_mode=True, tools=True)


WHOLE = "[[ ## reasoning ## ]]\nr\n\n[[ ## answer ## ]]\na\n\n[[ ## completed ## ]]"


@scenario
def a_model_for_dspy():
    """StreamLM by itself."""
    seen = []

    def answer(request):
        seen.append(request)
        extra = {"reasoning_content": "hm", "logprobs": {"content": []}}
        if request.options.get("tools"):
            call = {
                "id": "c1",
                "type": "function",
                "function": {"name": "double", "arguments": '{"value": 4}'},
            }
            return Choice("", "tool_calls", {"tool_calls": [call]})
        many = request.options.get("n", 1)
        return Response((Choice("hello", "stop", extra),) * many, Usage(3, 4), "m")

    lm = StreamLM(ds.ScriptedLM(answer, cache=True, temperature=0.2), top_p=0.5)
    yield "prompt", lm("hi")
    yield "logprobs", lm(messages=[{"role": "user", "content": "hi"}], logprobs=True)
    yield "again", [len(seen), lm("hi"), len(seen)]
    yield "several", len(lm("hi", n=3))
    form = lm.forward("hi")
    choice = form.choices[0]
    yield (
        "forward",
        [choice.message.content, choice["finish_reason"], form.model, form.cache_hit, dict(form.usage)],
    )
    fresh = lm.forward("other").usage
    yield "paid", [fresh.prompt_tokens, fresh["total_tokens"]]
    yield "awaited", asyncio.run(lm.acall("hi"))
    yield "tools", lm("hi", tools=[{"type": "function", "function": {"name": "double"}}])
    copied = lm.copy(rollout_id=3, temperature=1.0, top_p=None)
    copied("hi")
    yield "copied", [dict(seen[-1].options), seen[-1].rollout_id, copied.kwargs, lm.kwargs]
    yield "state", lm.dump_state()
    wrong = {"api_key": "sk-a-key"}
    refused = (lambda: StreamLM(3), lm, lambda: lm("hi", **wrong), lambda: StreamLM(lm, **wrong))
    yield "refused", [said(call) for call in (*refused, lambda: lm.copy(**wrong))]
    named = StreamLM("openai/m", api_base="http://127.0.0.1:1/v1", temperature=0.5, cache=False, **wrong)
    yield "named", [named.dump_state(), named.kwargs, named.cache, named.source.api_base]
    schema = dspy.Signature("question -> answer, who: list[int]")
    model = Model()
    capable = Capable(model.answer, model="openai/gpt-4o", cache=True)
    module = DSPyModule(dspy.Predict(schema))
    with dspy.context(adapter=dspy.JSONAdapter()), ds.context(lm=capable):
        said(lambda: module(question="number 3"))
    yield "form", model.options[0].get("response_format")
    schema = dspy.Signature("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls, answer")
    capable = Capable(answer, model="openai/gpt-4o", cache=True)
    module = DSPyModule(dspy.Predict(schema))
    with dspy.context(adapter=dspy.JSONAdapter()), ds.context(lm=capable):
        made = module(question="number 4", tools=[dspy.Tool(double)])
    call = made.calls.tool_calls[0]
    yield "native tools", [call.name, call.args, sorted(seen[-1].options)]
    if not OLD:
        request = dspy.lm15.Request(
            model="scripted/model", messages=(dspy.lm15.Message.user("number 2"),), config=dspy.lm15.Config()
        )
        yield "request", type(lm(request)).__name__


@scenario
def names():
    class Extra(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question, hint="", **kwargs):
            return self.ask(question=question)

    kinds = {
        "predict": dspy.Predict("a, b: int -> c, d"),
        "typed": dspy.Predict(Triage),
        "thinking": dspy.ChainOfThought("a -> b"),
        "agent": dspy.ReAct("a -> b", tools=[double]),
        "forward": Two(),
        "aforward": Later(),
        "any": Extra(),
        "best": dspy.BestOfN(dspy.ChainOfThought("a -> b"), N=2, reward_fn=lambda a, p: 1.0, threshold=1.0),
    }
    for name, program in kinds.items():
        module = DSPyModule(program)
        yield name, [module.input_names(), module.required_names(), module.output_names(), module.label]
    rows = ds.Stream.from_iterable([{"question": "number 1", "lm": "x", "demos": 3, "signature": "a -> b"}])
    yield "privileged", rows.through(Extra()).to_list(lm=Model().lm)[0]["answer"]
    yield "missing", said(lambda: through(Two(), [{"text": "number 1"}], Model()))


@scenario
def processes():
    def asked(change, **options):
        program, prompts, given = Two(), [], []
        change(program)

        def answer(request):
            prompts.append([message.to_json() for message in request.messages])
            given.append(dict(request.options))
            return "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\n1\n\n[[ ## completed ## ]]"

        rows = ds.Stream.from_iterable([{"question": "number 1"}]).through(program, **options)
        return [rows.to_list(lm=ds.ScriptedLM(answer)), prompts, given]

    def learned(program):
        program.first.demos = [dspy.Example(question="a demo", answer="shown")]
        program.first.signature = program.first.signature.with_instructions("What was learned.")

    def own(program):
        program.first.lm = dspy.LM("openai/gpt-4o-mini", api_key="none")

    def temperature(program):
        program.first.config = {"temperature": 0.25}

    def changed(program):
        program.first.signature = program.first.signature.append("why", dspy.OutputField(), str)

    def nested():
        program, prompts = outer(), []
        learned(program.inner.program)

        def answer(request):
            prompts.append([message.to_json() for message in request.messages])
            return "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\n1\n\n[[ ## completed ## ]]"

        options = {"isolation": "process", "workers": 1, "factory": outer}
        rows = ds.Stream.from_iterable([{"question": "number 1"}]).through(program, **options)
        return [rows.to_list(lm=ds.ScriptedLM(answer)), prompts]

    there = {"isolation": "process", "workers": 1, "factory": two}
    for name, how in {"plain factory": {"factory": plain_two}, "no factory": {"factory": None}}.items():
        yield name, asked(learned, **{**there, **how})
    yield "nested", nested()
    yield "options", [asked(temperature)[2], asked(temperature, **there)[2]]
    yield "changed", said(lambda: asked(changed, **there))
    yield "learned", [asked(learned), asked(learned, **there)]
    yield "own model", said(lambda: asked(own, **there))


if __name__ == "__main__":
    for name in sys.argv[1:] or SCENARIOS:
        for what, value in SCENARIOS[name]():
            print(json.dumps({"what": f"{name}: {what}", "value": value}, default=str), flush=True)
