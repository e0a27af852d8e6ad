"""Events: who hears of what, in which order, and at what cost when nobody listens."""

import asyncio
import logging
import threading

import pytest

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.errors import LMError
from dspy_stream.events import Called, Ended, Started
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.program.types import Tool


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch):
    """Whatever other tests have left listening does not count here, nor what these leave."""
    for name in ("_subscribers", "active", "_armed"):
        monkeypatch.setattr(events, name, getattr(events, name))
    events._keep([each for each in events._subscribers if each.always_told])
    monkeypatch.setattr(events, "_armed", False)


@pytest.fixture
def heard():
    found = []
    stop = events.subscribe(found.append)
    yield found
    stop()


class Answers(ds.Module):
    def __init__(self):
        super().__init__()
        self.think = ds.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.think(question=question)


class Later(ds.Module):
    def __init__(self):
        super().__init__()
        self.first = ds.Predict("question -> answer")
        self.second = ds.Predict("question -> answer")

    async def aforward(self, question):
        made, _ = await asyncio.gather(
            self.first.acall(question=question), self.second.acall(question=question)
        )
        return made


def model(**options):
    return ScriptedLM(lambda request: {"reasoning": "r", "answer": "A"}, **options)


def tree(found):
    """Each call as (kind, what it is), with the calls made in it."""
    inner = {event.id: [] for event in found if isinstance(event, Started)}
    top = []
    for event in found:
        if isinstance(event, Started):
            node = (event.kind, type(event.instance).__name__, inner[event.id])
            (inner[event.parent] if event.parent is not None else top).append(node)
    return top


PREDICTED = [
    ("adapter_format", "ChatAdapter", []),
    ("lm", "ScriptedLM", []),
    ("adapter_parse", "ChatAdapter", []),
]


class TestSubscribing:
    def test_nobody_listens_until_somebody_does(self):
        assert not events.active
        stop = events.subscribe(print)
        assert events.active
        stop()
        assert not events.active
        stop()

    def test_whoever_leaves_flows_out_and_wants_models_only_costs_them_nothing(self):
        stop = events.subscribe(print, kinds=["lm"], in_flows=False)
        assert not events.active
        stop()

    def test_only_the_kinds_that_are_wanted(self):
        found = []
        stop = events.subscribe(found.append, kinds=["tool", "lm"])
        with ds.context(lm=model()):
            Answers()(question="q")
        Tool(lambda: 1, name="one")()
        stop()
        assert [event.kind for event in found] == ["lm", "lm", "tool", "tool"]

    def test_subscribing_again_replaces(self):
        found = []
        events.subscribe(found.append, kinds=["lm"])
        stop = events.subscribe(found.append, kinds=["tool"])
        Tool(lambda: 1, name="one")()
        stop()
        assert [event.kind for event in found] == ["tool", "tool"]

    def test_a_listener_that_fails_is_logged_and_the_others_hear(self, heard, caplog):
        def fails(event):
            raise OSError("no space")

        stop = events.subscribe(fails)
        with caplog.at_level(logging.WARNING, "dspy_stream"):
            assert Tool(lambda: 1, name="one")() == 1
        stop()
        assert len(heard) == 2
        assert [record.message for record in caplog.records] == [
            "a listener failed at the event 'tool': OSError: no space"
        ] * 2

    def test_a_listener_may_unsubscribe_itself(self):
        found = []

        def once(event):
            found.append(event)
            events.unsubscribe(once)

        events.subscribe(once)
        Tool(lambda: 1, name="one")()
        assert len(found) == 1


class TestCalls:
    def test_modules_models_and_adapters_with_their_parents(self, heard):
        with ds.context(lm=model()):
            Answers()(question="q")
        assert tree(heard) == [
            ("module", "Answers", [("module", "ChainOfThought", [("module", "Predict", PREDICTED)])])
        ]
        assert [type(event) for event in heard if event.kind == "lm"] == [Started, Called]
        ids = [event.id for event in heard]
        assert all(ids.count(each) == 2 for each in ids)
        assert events.ACTIVE_CALL_ID.get() is None

    def test_the_same_from_a_coroutine(self, heard):
        async def work():
            with ds.context(lm=model()):
                return await asyncio.gather(Answers().acall(question="a"), Answers().acall(question="b"))

        asyncio.run(work())
        one = ("module", "Answers", [("module", "ChainOfThought", [("module", "Predict", PREDICTED)])])
        assert tree(heard) == [one, one]

    @pytest.mark.parametrize(
        "call", [lambda m: m(question="q"), lambda m: asyncio.run(m.acall(question="q"))]
    )
    def test_calls_of_an_aforward_are_within_it(self, heard, call):
        with ds.context(lm=model()):
            call(Later())
        assert tree(heard) == [
            ("module", "Later", [("module", "Predict", PREDICTED), ("module", "Predict", PREDICTED)])
        ]

    def test_parts_of_a_pipeline(self, heard):
        pipeline = ds.ChainOfThought("question -> answer") | (lambda answer: {"loud": answer.upper()})
        with ds.context(lm=model()):
            pipeline(question="q")
        assert tree(heard) == [
            (
                "module",
                "Pipeline",
                [("module", "ChainOfThought", [("module", "Predict", PREDICTED)]), ("module", "Apply", [])],
            )
        ]

    def test_a_model_by_itself(self, heard):
        lm = model()
        lm("hi", temperature=0.3)
        lm(messages=[{"role": "user", "content": "x"}])
        began = [event for event in heard if isinstance(event, Started)]
        assert began[0].inputs == {"prompt": "hi", "messages": None, "kwargs": {"temperature": 0.3}}
        assert began[1].inputs["messages"] == [{"role": "user", "content": "x"}]
        assert all(event.instance is lm for event in heard)

    def test_errors_are_told_and_raised(self, heard):
        class Fails(ds.Module):
            def forward(self):
                raise KeyError("x")

        with pytest.raises(KeyError):
            Fails()()
        (ended,) = [event for event in heard if isinstance(event, Ended)]
        assert ended.outputs is None
        assert isinstance(ended.exception, KeyError)
        assert events.ACTIVE_CALL_ID.get() is None

    def test_a_model_that_fails(self, heard):
        class Down(LMError):
            pass

        def fail(request):
            raise Down("down")

        with pytest.raises(Down):
            ScriptedLM(fail)("hi")
        (ended,) = [event for event in heard if isinstance(event, Called)]
        assert isinstance(ended.exception, Down)
        assert ended.response is None

    def test_times_and_seconds(self, heard):
        Tool(lambda: 1, name="one")()
        began, ended = heard
        assert ended.time >= began.time > 1e9
        assert 0 <= ended.seconds < 5

    def test_a_tool_of_either_kind(self, heard):
        async def two(x: int) -> int:
            return x + 2

        asyncio.run(Tool(two).acall(x=1))
        with pytest.raises(ValueError, match="y"):
            Tool(lambda: 1, name="one")(y=2)
        assert [(event.kind, type(event).__name__) for event in heard] == [
            ("tool", "Started"),
            ("tool", "Ended"),
        ] * 2
        assert heard[1].outputs == 3
        assert isinstance(heard[3].exception, ValueError)

    def test_in_another_thread(self, heard):
        with ds.context(lm=model()):
            import contextvars

            thread = threading.Thread(
                target=contextvars.copy_context().run, args=(Answers(),), kwargs={"question": "q"}
            )
            thread.start()
            thread.join()
        assert [node[1] for node in tree(heard)] == ["Answers"]


class TestInFlows:
    @pytest.mark.parametrize(
        ("make", "inside"),
        [
            (
                Answers,
                [("module", "Answers", [("module", "ChainOfThought", [("module", "Predict", PREDICTED)])])],
            ),
            (Later, [("module", "Later", [("module", "Predict", PREDICTED)] * 2)]),
            (lambda: ds.Predict("question -> answer"), [("module", "Predict", PREDICTED)]),
        ],
    )
    def test_row_and_step_are_named(self, heard, make, inside):
        rows = [{"id": f"row{n}", "question": f"q{n}"} for n in range(3)]
        stream = ds.Stream.from_iterable(rows, id="id").through(make(), name="answering")
        assert len(stream.to_list(lm=model(cache=True))) == 3
        calls = [event for event in heard if event.kind != "settings"]
        assert {event.row for event in calls} == {"row0", "row1", "row2"}
        assert len({event.step for event in calls}) == 1
        assert "answering" in calls[0].step
        for row in ("row0", "row1", "row2"):
            assert tree([event for event in calls if event.row == row]) == inside

    def test_whoever_leaves_flows_out_hears_nothing(self):
        found = []
        stop = events.subscribe(found.append, in_flows=False)
        ds.Stream.from_iterable([{"question": "q"}]).through(Answers()).to_list(lm=model())
        stop()
        assert found == []

    def test_answers_are_the_same_whether_somebody_listens_or_not(self, heard):
        rows = [{"question": f"q{n}"} for n in range(5)]
        told = ds.Stream.from_iterable(rows).through(Answers()).to_list(lm=model())
        events.unsubscribe(heard.append)
        assert ds.Stream.from_iterable(rows).through(Answers()).to_list(lm=model()) == told


class TestSettings:
    def test_a_changed_setting_is_told_with_both_values(self, heard):
        ds.configure(num_threads=3)
        ds.configure(num_threads=3)
        ds.configure(num_threads=8)
        changes = [event.changed for event in heard if event.kind == "settings"]
        assert changes == [{"num_threads": (8, 3)}, {"num_threads": (3, 8)}]
        with ds.context(num_threads=2):
            pass
        assert len(heard) == 2
