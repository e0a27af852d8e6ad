"""Functions of rows: a row that fails is a dead letter, and many in a row end the flow."""

import pytest

from dspy_stream.errors import PoisonRow
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.functions import Judge, RowFunction
from dspy_stream.stream.job import Job
from dspy_stream.stream.limits import Limit
from dspy_stream.stream.nodes import Branch, Filter
from dspy_stream.stream.work import Dropped


def rows(count):
    return [Row(f"r{number}", {"n": number}, Origin("s", "p", number)) for number in range(count)]


class Watched(Job):
    """A job that notes what it watches, and remembers the deaths it is given."""

    def __init__(self, **deaths):
        super().__init__("test", "digest")
        self.past = deaths
        self.noted = []

    def entered(self, step, row_id):
        self.noted.append((step, row_id))

    def left(self):
        self.noted.append("left")

    def deaths(self, step, row_id):
        return self.past.get(row_id, 0)


def filtered(fn, job):
    return RowFunction("step", Filter(fn), job)


def branched(fn, job):
    judge = Judge("step", Branch(fn, True, object()), job)
    return lambda items: [item for _, item in judge(items)]


@pytest.fixture(params=[filtered, branched])
def operation(request):
    return request.param


def fails(row):
    raise KeyError(row.n)


def test_every_row_is_watched_while_its_function_runs(operation):
    job = Watched()

    def fn(row):
        job.noted.append("runs")
        return row.n / row.n

    operation(fn, job)(rows(2))
    assert job.noted == [("step", "r0"), "runs", "left", ("step", "r1"), "runs", "left"]


def test_a_row_that_ended_the_process_three_times_is_not_run_again(operation):
    seen = []
    job = Watched(r1=3, r2=2)
    out = operation(lambda row: seen.append(row.n) or True, job)(rows(3))
    assert seen == [0, 2]
    assert [type(item) for item in out] == [Row, DeadLetter, Row]
    assert (out[1].stage, out[1].error["type"]) == ("process", PoisonRow.__name__)


def test_a_row_that_raises_is_a_letter_of_the_function(operation):
    (letter,) = operation(fails, Watched())(rows(1))
    assert (letter.stage, letter.step, letter.error["type"]) == ("map", "step", "KeyError")


def test_many_failures_one_after_the_other_end_the_flow(operation):
    job = Watched()
    job.limit = Limit(consecutive=3)
    apply = operation(lambda row: row.n == 2 or fails(row), job)
    apply(rows(5))
    assert job.gate.exceeded is None
    apply(rows(1))
    assert "3 rows failed one after the other in step" in str(job.gate.exceeded)


def test_what_is_no_row_goes_to_the_first_side_alone():
    dropped = Dropped("r0")
    assert Judge("step", Branch(fails, True, object()), Watched())([dropped]) == [(True, dropped)]
