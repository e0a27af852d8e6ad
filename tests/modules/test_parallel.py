"""Parallel: order, failures, how many at a time, stragglers, and where it may be called from."""

import asyncio
import contextvars
import threading
import time

import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.errors import ConfigurationError, LMAuthError, RowError, RowTimeout
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.modules.best_of_n import BestOfN
from dspy_stream.modules.parallel import Parallel, ParallelFailed
from dspy_stream.modules.scope import SCOPE, Clients, Scope
from dspy_stream.program import Example, Prediction
from dspy_stream.runtime import aperform
from dspy_stream.stream import Stream


def echo(request):
    return {"answer": request.messages[-1].content.split("\n")[1]}


def questions(count):
    return [{"question": f"q{number}"} for number in range(count)]


def expected(count):
    return [f"q{number}" for number in range(count)]


def run(module, examples, **options):
    return Parallel(disable_progress_bar=True, **options)([(module, example) for example in examples])


class Fails(Module):
    """Fails for the questions it is told."""

    def __init__(self, *questions):
        self.questions = questions

    def forward(self, question):
        if question in self.questions:
            raise ValueError(f"no {question}")
        return Prediction(answer=question)


class TestResults:
    def test_they_come_in_the_order_of_the_pairs(self):
        def later_first(request):
            async def wait():
                await asyncio.sleep(0.02 - int(echo(request)["answer"][1:]) * 0.001)
                return echo(request)

            return wait()

        with context(lm=ScriptedLM(later_first)):
            made = run(Predict("question -> answer"), questions(20), num_threads=20)
        assert [row.answer for row in made] == expected(20)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_of_any_number_of_rows(self, count):
        assert [row.answer for row in run(Fails(), questions(count), num_threads=8)] == expected(count)

    def test_examples_of_every_kind(self):
        def both(a, b=0):
            return (a, b)

        pairs = [
            (both, {"a": 1, "b": 2}),
            (both, (3,)),
            (both, (4, 5)),
            (both, Example(a=6, b=7, c=8).with_inputs("a", "b")),
            [both, {"a": 9}],
        ]
        assert Parallel()(pairs) == [(1, 2), (3, 0), (4, 5), (6, 7), (9, 0)]

    def test_an_example_as_it_is(self):
        example = Example(a=1)
        assert Parallel(access_examples=False)([(lambda it: it, example)]) == [example]

    def test_functions_and_coroutine_functions(self):
        async def slow(question):
            await asyncio.sleep(0.001)
            return question + "!"

        assert run(slow, questions(3)) == ["q0!", "q1!", "q2!"]
        assert asyncio.run(Parallel().acall([(slow, {"question": "a"})])) == ["a!"]

    def test_within_each_other(self):
        inner = [(Fails(), {"question": "b"}), (Fails(), {"question": "c"})]
        made = Parallel()([(Fails(), {"question": "a"}), (Parallel(), inner)])
        assert (made[0].answer, [row.answer for row in made[1]]) == ("a", ["b", "c"])

    def test_a_row_may_call_a_model_by_hand(self):
        lm = ScriptedLM("hello", latency=0.001)
        assert run(lambda question: lm(question)[0], questions(5)) == ["hello"] * 5


class TestFailures:
    def test_a_failed_row_is_none_and_the_others_are_there(self):
        made = run(Fails("q1", "q3"), questions(5))
        assert [row and row.answer for row in made] == ["q0", None, "q2", None, "q4"]

    def test_they_are_returned_with_their_examples_in_order(self):
        rows, examples, errors = run(Fails("q3", "q1"), questions(5), return_failed_examples=True)
        assert [row and row.answer for row in rows] == ["q0", None, "q2", None, "q4"]
        assert examples == [{"question": "q1"}, {"question": "q3"}]
        assert [str(error) for error in errors] == ["no q1", "no q3"]

    def test_nothing_is_kept_between_calls(self):
        parallel = Parallel(return_failed_examples=True)
        for _ in range(2):
            _, examples, errors = parallel([(Fails("q0"), {"question": "q0"})])
            assert (len(examples), len(errors)) == (1, 1)

    def test_too_many_end_it_and_no_result_is_lost(self):
        module = Fails(*(f"q{number}" for number in range(10, 100)))
        with pytest.raises(
            ParallelFailed, match="Execution cancelled due to errors or interruption"
        ) as caught:
            run(module, questions(100), max_errors=3, num_threads=1)
        error = caught.value
        assert [row.answer for row in error.results[:10]] == expected(10)
        assert error.results[10:] == [None] * 90
        assert error.failed_examples == [{"question": f"q{number}"} for number in (10, 11, 12)]
        assert [str(each) for each in error.exceptions] == ["no q10", "no q11", "no q12"]
        assert "3 of 100 rows failed, and max_errors is 3; the first: ValueError('no q10')" in str(error)

    def test_rows_in_flight_are_waited_for_when_it_ends(self):
        async def row(number):
            await asyncio.sleep(0.001 if number == 0 else 0.02)
            if number == 0:
                raise ValueError("first")
            return number

        with pytest.raises(ParallelFailed) as caught:
            Parallel(num_threads=3, max_errors=1)([(row, (number,)) for number in range(9)])
        assert caught.value.results == [None, 1, 2, None, None, None, None, None, None]

    def test_the_limit_is_that_of_the_settings(self):
        with context(max_errors=2), pytest.raises(ParallelFailed, match="max_errors is 2"):
            run(Fails("q0", "q1"), questions(3))
        assert run(Fails("q0", "q1"), questions(3))[2].answer == "q2"

    def test_what_every_row_would_meet_ends_it_at_once(self):
        lm = ScriptedLM(lambda request: LMAuthError("no key"))
        with context(lm=lm), pytest.raises(LMAuthError):
            run(Predict("question -> answer"), questions(50), num_threads=2)
        assert lm.call_count == 2

    def test_they_are_logged_with_a_traceback_where_it_is_wanted(self, caplog):
        run(Fails("q0"), questions(1))
        assert "row 0 failed: ValueError('no q0')" in caplog.text
        assert "Traceback" not in caplog.text
        run(Fails("q0"), questions(1), provide_traceback=True)
        assert "Traceback" in caplog.text

    def test_an_example_of_another_kind_is_a_failed_row(self):
        _, _, errors = Parallel(return_failed_examples=True)([(Fails(), 7), (Fails(), [])])
        assert [str(error).startswith("Invalid example type: <class") for error in errors] == [True, True]

    def test_what_is_no_pair_is_refused(self):
        with pytest.raises(ConfigurationError, match="item 2 is no pair"):
            Parallel()([(Fails(), {}), {"question": "a"}])
        with pytest.raises(ConfigurationError, match="num_threads is 0"):
            Parallel(num_threads=0)


class TestInFlight:
    @pytest.mark.parametrize(
        ("made", "called", "expected"), [(3, None, 3), (3, 5, 5), (None, None, 4), (50, None, 20)]
    )
    def test_so_many_and_no_more(self, made, called, expected):
        now = most = 0

        async def row(number):
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.002)
            now -= 1

        with context(num_threads=4):
            Parallel(num_threads=made)([(row, (number,)) for number in range(20)], called)
        assert most == expected

    def test_no_thread_is_started_for_a_row(self):
        threads = set()

        async def row(number):
            threads.add(threading.current_thread())
            await asyncio.sleep(0.001)

        Parallel(num_threads=64)([(row, (number,)) for number in range(64)])
        assert len(threads) == 1

    @pytest.mark.measures
    def test_the_cost_of_a_row_does_not_grow_with_their_number(self):
        def seconds(count):
            rows = [(lambda number: number, (number,)) for number in range(count)]
            began = time.process_time()
            assert Parallel(num_threads=8)(rows) == list(range(count))
            return (time.process_time() - began) / count

        seconds(200)
        assert seconds(6000) < 4 * seconds(600) + 1e-4


class TestStragglers:
    def test_one_that_hangs_is_begun_again_and_its_finished_calls_are_not_made_again(self):
        configure(journal=DictJournal())
        hung = []

        def reply(request):
            if "slow" not in request.messages[-1].content:
                return echo(request)

            async def wait():
                if not hung:
                    hung.append(True)
                    await asyncio.sleep(60)
                return {"answer": "late"}

            return wait()

        class Two(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")

            def forward(self, question):
                first = self.ask(question=question).answer
                return self.ask(question="slow").answer if first == "q1" else first

        lm = ScriptedLM(reply, cache=True)
        with context(lm=lm):
            assert run(Two(), questions(3), timeout=0.05) == ["q0", "late", "q2"]
        assert lm.call_count == 5  # three first calls, and the slow one twice

    def test_the_second_time_it_fails(self):
        async def row(number):
            await asyncio.sleep(60 if number == 1 else 0)
            return number

        made, examples, errors = Parallel(timeout=0.02, return_failed_examples=True)(
            [(row, (number,)) for number in range(3)]
        )
        assert (made, examples) == ([0, None, 2], [(1,)])
        assert isinstance(errors[0], RowTimeout)

    def test_many_slow_rows_are_no_stragglers(self):
        begun = []

        async def row(number):
            begun.append(number)
            await asyncio.sleep(0.05)
            return number

        rows = [(row, (number,)) for number in range(6)]
        assert Parallel(timeout=0.001, straggler_limit=0)(rows) == list(range(6))
        assert begun == list(range(6))


class TestWhereItIsCalled:
    def test_in_a_forward_many_rows_at_once_under_several_scopes(self):
        class Program(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")
                self.parallel = Parallel(num_threads=3, disable_progress_bar=True)

            def forward(self, topic):
                asked = [(self.ask, {"question": f"{topic}-{number}"}) for number in range(3)]
                return Prediction(all=[row.answer for row in self.parallel(asked)])

        module = Program()
        clients = Clients(DictJournal())
        scopes = [
            Scope(
                clients, lm=ScriptedLM(lambda request, name=name: {"answer": name + echo(request)["answer"]})
            )
            for name in "ab"
        ]

        async def row(number):
            SCOPE.set(scopes[number % 2])
            return (await aperform(module.steps({"topic": str(number)}))).all

        async def main():
            return await asyncio.gather(*(row(number) for number in range(20)))

        assert asyncio.run(main()) == [
            [f"{'ab'[number % 2]}{number}-{part}" for part in range(3)] for number in range(20)
        ]

    def test_attempts_are_passed_on_to_its_rows(self):
        class Program(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")

            def forward(self, question):
                (made,) = Parallel()([(self.ask, {"question": question})])
                return made

        lm = ScriptedLM(lambda request: {"answer": str(request.rollout_id)})
        with context(lm=lm):
            best = BestOfN(Program(), 3, lambda args, pred: int(pred.answer), None)
            assert best(question="?").answer == "2"

    def test_each_row_has_a_context_of_its_own(self):
        mark = contextvars.ContextVar("mark", default="outer")

        def row(number):
            before = mark.get()
            mark.set(f"row {number}")
            return before

        assert Parallel(num_threads=1)([(row, (number,)) for number in range(3)]) == ["outer"] * 3

    def test_a_cancelled_call_cancels_its_rows(self):
        cancelled = []

        async def row(number):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise

        async def main():
            task = asyncio.ensure_future(Parallel(num_threads=2).acall([(row, (n,)) for n in range(4)]))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.01)

        asyncio.run(main())
        assert sorted(cancelled) == [0, 1]


def test_the_counter_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    Parallel()([(Fails(), {"question": "a"})])
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    Parallel()([(Fails(), {"question": "a"}), (Fails(), {"question": "b"})])
    assert terminal.text == "\r0 of 2 rows\r1 of 2 rows\r2 of 2 rows\n"
    terminal.text = ""
    Parallel(disable_progress_bar=True)([(Fails(), {"question": "a"})])
    assert terminal.text == ""


class Lost(Module):
    """Its row is cancelled by code of its own, as by a client whose connection broke: at once, or later."""

    def __init__(self, later):
        self.later = later

    async def aforward(self, question):
        if question == "q1":
            if self.later:
                await asyncio.sleep(0)
            raise asyncio.CancelledError("lost")
        return Prediction(answer=question)


@pytest.mark.parametrize("timeout", [120, 0, None])
@pytest.mark.parametrize("later", [False, True])
def test_a_row_that_cancels_itself_has_failed_and_no_other(later, timeout):
    made = run(Lost(later), questions(3), return_failed_examples=True, timeout=timeout)
    assert [each and each.answer for each in made[0]] == ["q0", None, "q2"]
    assert [type(error) for error in made[2]] == [RowError]
    assert "CancelledError" in str(made[2][0])


@pytest.mark.parametrize("later", [False, True])
def test_in_a_flow_it_is_a_dead_letter(later):
    report = Stream.from_iterable(questions(3)).through(Lost(later)).write([]).run(state=None, quiet=True)
    assert (report.rows_out, report.dead_letters) == (2, 1)
