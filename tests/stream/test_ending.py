"""Whatever ends a flow ends it: each reason, in each shape of program, in order or not."""

import asyncio
import re
import threading

import orjson
import pytest

from dspy_stream.clock import SystemClock
from dspy_stream.errors import AdapterParseError, BudgetExceeded, LMServerError, TooManyFailures
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.modules.compose import Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.route import Loop, Route
from dspy_stream.stream import Stream, job, wall

ROWS = 30
CALLS = 12
ENOUGH = 30.0
UNREADABLE = "I would rather not."

READ = Predict("text -> kind, n: int")
ANSWER = Predict("text, kind -> answer")
REPLY = Predict("text -> reply")
FORK = Fork(x=ANSWER, y=REPLY)
SHAPES = {
    "a step": READ,
    "two steps": READ | ANSWER,
    "a fork": Program(read=READ, more=FORK),
    "a fork in a fork": Program(read=READ, more=Fork(in_it=FORK, z=Predict("text -> said"))),
    "a route": Program(read=READ, way=Route("kind", {"odd": ANSWER}, default=Program(two=ANSWER, one=REPLY))),
    "a loop": Program(read=READ, more=Loop(ANSWER, lambda answer: answer == "yes", 2)),
}
ORDERS = ["ordered", "unordered"]


def asked(request):
    """The text of the row, and which fields are asked for."""
    last = request.tail[0].content
    (text,) = re.findall(r"\[\[ ## text ## \]\]\n(\w+)", last)
    return text, re.findall(r"\[\[ ## (\w+) ## \]\]", last.rsplit("Respond", 1)[-1])


class Answers:
    """A model that answers one row, for ``field``, with something unreadable, and at its own time.

    That is when it has been called ``at`` times, or not at ``ever``; ``then`` is called just before.
    """

    def __init__(
        self, field, then=lambda: None, *, answer=UNREADABLE, repaired=True, ever=True, at=CALLS, head="t0"
    ):
        self.calls = 0
        self._held = (head, field)
        self._then = then
        self._answer = answer
        self._repaired = repaired
        self._ever = ever
        self._at = at
        self._reached = asyncio.Event()

    async def __call__(self, request):
        self.calls += 1
        if self.calls == self._at:
            self._then()
            if self._ever:
                self._reached.set()
        text, wanted = asked(request)
        head, field = self._held
        if text == head and field in wanted and not (self._repaired and len(request.tail) > 1):
            await self._reached.wait()
            if isinstance(self._answer, Exception):
                raise self._answer
            return self._answer
        n = int(text[1:])
        return {"kind": "odd" if n % 2 else "even", "n": n, "answer": "yes", "reply": text, "said": text}


class Failing:
    """A model that is out for the first row and for replies; all other answers are unreadable, afterwards."""

    def __init__(self):
        self._out = asyncio.Event()

    async def __call__(self, request):
        text, wanted = asked(request)
        if text == "t0" or "reply" in wanted:
            self._out.set()
            raise LMServerError("out")
        await self._out.wait()
        return UNREADABLE


def deadline(seen=None):
    """A watch that makes a flow fail that does not end."""

    def watch(running):
        if seen is not None:
            seen.append(running)

        def end():
            for pool in running.pools.values():
                pool.fatal = AssertionError("the flow does not end")

        timer = threading.Timer(ENOUGH, end)
        timer.daemon = True
        timer.start()
        return timer.cancel

    return watch


class Here:
    def __init__(self, path):
        self.state = path / "state"
        self.out = path / "out.jsonl"
        self.input = path / "in.jsonl"
        self.input.write_bytes(b"".join(b'{"text":"t%d"}\n' % n for n in range(ROWS)))

    def stream(self, shape, order, **options):
        return Stream.read(self.input, name="end").through(SHAPES[shape], order=order, **options)

    def run(self, stream, script, **options):
        given = {"state": self.state, "quiet": True, "epoch": 0.02, "capacity": 4, "watch": deadline()}
        return stream.write(self.out).run(lm=ScriptedLM(script, cache=True), **{**given, **options})

    def texts(self):
        return [orjson.loads(line)["text"] for line in self.out.read_bytes().splitlines()]

    def goes_on(self, stream, order, **options):
        """A later run finishes it: every row is out, once, and where it belongs."""
        report = self.run(stream, Answers(""), **options)
        assert (report.status, report.resumed, report.dead_letters) == ("finished", True, 0)
        texts = self.texts()
        expected = [f"t{n}" for n in range(ROWS)]
        assert texts == expected if order == "ordered" else sorted(texts) == sorted(expected)


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


EACH = pytest.mark.parametrize("order", ORDERS)
SHAPED = pytest.mark.parametrize("shape", list(SHAPES))
# Which answer the first row waits for: that of the first step, or of one further on.
HELD = pytest.mark.parametrize(
    ("shape", "field", "workers"),
    [(shape, "kind", workers) for shape in SHAPES for workers in (1, 2)]
    + [(shape, "answer", 1) for shape in SHAPES if shape != "a step"]
    + [("a fork", "reply", 1), ("a fork in a fork", "said", 1)],
)


@EACH
class TestOutOfCourse:
    @HELD
    def test_a_budget_that_leaves_the_first_row_without_its_repair(self, here, shape, order, field, workers):
        stream = here.stream(shape, order)
        script = Answers(field)
        with pytest.raises(BudgetExceeded):
            here.run(stream, script, max_calls=CALLS, workers=workers)
        assert script.calls == CALLS
        here.goes_on(stream, order, workers=workers)

    @HELD
    def test_a_stop_whose_grace_is_over_before_the_first_row_is(self, here, shape, order, field, workers):
        stream, jobs = here.stream(shape, order), []
        script = Answers(field, then=lambda: jobs[0].stop(0.0), ever=False)
        report = here.run(stream, script, workers=workers, watch=deadline(jobs))
        assert report.status == "stopped"
        here.goes_on(stream, order, workers=workers)

    @SHAPED
    def test_a_clock_that_is_set_back_while_the_first_row_is_answered(self, here, shape, order, monkeypatch):
        class Clock(SystemClock):
            ahead = 0.0

            def time(self):
                return super().time() + Clock.ahead

        monkeypatch.setattr(job, "SystemClock", Clock)
        monkeypatch.setattr(wall, "_LOOK", 0.01)
        script = Answers("kind", then=lambda: setattr(Clock, "ahead", -3600.0))
        report = here.run(here.stream(shape, order), script, grace=0.0)
        assert (report.status, report.rows_out) == ("finished", ROWS)

    @SHAPED
    def test_too_many_failures_behind_a_row_that_is_to_be_tried_again(self, here, shape, order):
        stream = here.stream(shape, order).limit_failures(consecutive=5)
        with pytest.raises(TooManyFailures):
            here.run(stream, Failing(), capacity=8)

    def test_too_many_failures_in_one_branch_while_nothing_comes_out_of_the_other(self, here, order):
        stream = Stream.read(here.input, name="end").through(Fork(x=READ, y=REPLY), order=order)
        latest = r"the latest: \w+: row \w+: AdapterParseError"  # no letter has come out to tell
        with pytest.raises(TooManyFailures, match=latest):
            here.run(stream.limit_failures(consecutive=5), Failing(), capacity=8)


@EACH
@SHAPED
class TestOfItself:
    def test_a_limit(self, here, shape, order):
        report = here.run(here.stream(shape, order), Answers(""), limit=10)
        assert (report.status, report.rows_out) == ("finished", 10)

    def test_the_first_failure_that_is_to_stop_it(self, here, shape, order):
        stream = here.stream(shape, order, on_error="stop", retries=0)
        with pytest.raises(AdapterParseError):
            here.run(stream, Answers("kind", repaired=False))

    def test_a_model_that_is_out_for_too_long(self, here, shape, order):
        with pytest.raises(LMServerError):
            here.run(here.stream(shape, order), lambda request: LMServerError("out"), outage=0.0)


@EACH
class TestGathered:
    """Rows that are gathered into lists, the last of them a short one."""

    def stream(self, here, order):
        stream = here.stream("a step", order).batch(4).map(lambda row: {"text": row.text[0]})
        return stream.through(REPLY, order=order)

    def test_a_budget_that_is_used_up_before_the_last(self, here, order):
        stream = self.stream(here, order)
        with pytest.raises(BudgetExceeded):
            here.run(stream, Answers(""), max_calls=ROWS + 7)
        report = here.run(stream, Answers(""))
        assert (report.status, report.rows_out) == ("finished", 8)

    def test_a_stop_while_the_last_is_answered(self, here, order):
        jobs = []

        script = Answers("reply", then=lambda: jobs[0].stop(0.0), ever=False, at=ROWS + 8, head="t28")
        report = here.run(self.stream(here, order), script, watch=deadline(jobs))
        assert report.status == "stopped"
