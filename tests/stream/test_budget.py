"""Flows with a budget: what they stop at, what they leave, and how they go on."""

import asyncio

import orjson
import pytest

from dspy_stream import runtime
from dspy_stream.errors import BudgetExceeded, LMConfigurationError, LMServerError, LMTimeoutError
from dspy_stream.lm import LM, Price
from dspy_stream.lm.budget import Budget
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.program import Prediction
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.runs import Runs
from dspy_stream.state.store import Store
from dspy_stream.stream import Stream
from dspy_stream.stream.run import exit_code
from dspy_stream.types import Choice, Response, Usage
from tests.lm.server import ModelServer, Reply, completion

ROWS = 60


def asked(request):
    return request.tail[0].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]


def model(usage=None, **options):
    """Answers in capitals; each call takes 90 tokens, 10 more, and a cent."""
    used = usage or Usage(90, 10, 0.01)

    async def answer(request):
        await asyncio.sleep(0)
        return Response((Choice(f"[[ ## answer ## ]]\n{asked(request).upper()}", "stop"),), used)

    return ScriptedLM(answer, cache=options.pop("cache", True), **options)


class Here:
    """A folder with an input, a flow over it, and what is left of a run."""

    def __init__(self, path):
        self.path = path
        self.state = path / "state"
        self.out = path / "out.jsonl"
        self.input = path / "in.jsonl"
        self.input.write_bytes(b"".join(b'{"question":"q%d"}\n' % n for n in range(ROWS)))

    def stream(self, *programs, **options):
        stream = Stream.read(self.input, name="qa")
        for program in programs or (Predict("question -> answer"),):
            stream = stream.through(program, name="ask", **options)
        return stream

    def run(self, stream=None, **options):
        flow = (stream if stream is not None else self.stream()).write(self.out)
        return flow.run(**{"state": self.state, "quiet": True, "epoch": 0.05, **options})

    def stops(self, stream=None, **options):
        with pytest.raises(BudgetExceeded) as caught:
            self.run(stream, **options)
        return caught.value

    def questions(self):
        rows = [orjson.loads(line) for line in self.out.read_bytes().splitlines()]
        return sorted((row["question"] for row in rows), key=lambda text: int(text[1:]))

    def letters(self):
        with Store.open(self.state, read_only=True) as store:
            return DeadLetterBox(store).list(None, None)

    def runs(self):
        with Store.open(self.state, read_only=True) as store:
            return Runs(store).list("qa")


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


ALL = [f"q{n}" for n in range(ROWS)]


class TestStopping:
    @pytest.mark.parametrize("capacity", [1, 7, 128])
    @pytest.mark.parametrize("workers", [1, 2])
    def test_max_calls_is_exact_and_a_higher_one_goes_on(self, here, capacity, workers):
        lm = model()
        stopped = here.stops(lm=lm, max_calls=25, capacity=capacity, workers=workers)
        assert lm.call_count == 25
        report = stopped.report
        assert (report.status, report.reason, report.calls, report.rows_out) == ("stopped", "budget", 25, 25)
        assert exit_code(report) == stopped.exit_code == 77
        assert len(here.questions()) == 25
        report = here.run(lm=lm, max_calls=100, capacity=capacity, workers=workers)
        assert report.resumed
        assert (report.status, report.rows_out, report.calls) == ("finished", ROWS, ROWS)
        assert lm.call_count == ROWS, "each call was paid for once"
        assert here.questions() == ALL
        assert here.letters() == []

    def test_the_message_says_what_was_spent_and_how_to_go_on(self, here):
        error = here.stops(lm=model(), max_calls=25)
        assert "of at most 25 calls (max_calls), 25 calls are spent" in str(error)
        assert "25 rows are out" in str(error)
        assert "higher max_calls (--max-calls)" in str(error)
        assert error.limit == "max_calls"

    def test_the_run_says_why_it_stopped(self, here):
        here.stops(lm=model(), max_calls=25)
        (run,) = here.runs()
        assert (run.status, "budget" in run.reason, run.resumable) == ("stopped", True, True)

    @pytest.mark.parametrize(
        ("limit", "spent"), [({"max_tokens": 2_000}, 20), ({"max_cost": 0.20}, 20), ({"max_cost": 0.0}, 0)]
    )
    def test_tokens_and_dollars_hold_where_answers_are_bounded(self, here, limit, spent):
        """With ``max_tokens`` set and prompts known from the first answer on, nothing is overdrawn."""
        lm = model(max_tokens=10)
        price = {"scripted/model": Price(100.0, 100.0)}
        stopped = here.stops(lm=lm, capacity=64, prices=price, **limit)
        assert lm.call_count <= spent
        assert lm.call_count >= spent * 0.8, "but what there was is used"
        assert stopped.limit == next(iter(limit))
        here.run(lm=lm, max_tokens=1_000_000, capacity=64)
        assert lm.call_count == ROWS
        assert here.questions() == ALL

    def test_without_bounded_answers_means_are_kept_in_reserve(self, here):
        lm = model()
        here.stops(lm=lm, capacity=64, max_cost=0.30)
        assert 20 <= lm.call_count <= 30

    def test_totals_count_over_all_restarts(self, here):
        lm = model()
        for limit in (10, 20, 20, 35):
            error = here.stops(lm=lm, max_calls=limit, capacity=4)
            assert error.report.calls == lm.call_count == limit
        report = here.run(lm=lm, max_calls=1000)
        assert (report.calls, report.priced, report.cost) == (ROWS, ROWS, pytest.approx(0.01 * ROWS))
        assert here.questions() == ALL

    def test_answers_of_the_journal_cost_nothing(self, here):
        lm = model()
        here.run(lm=lm)
        report = here.run(lm=lm, max_calls=0)
        assert (report.status, report.calls, report.hits, report.rows_out) == ("finished", 0, ROWS, ROWS)
        assert lm.call_count == ROWS

    def test_private_answers_are_kept_for_the_rest_of_the_run(self, here):
        lm = model(cache=False)
        here.stops(lm=lm, max_calls=25, capacity=8)
        here.run(lm=lm, max_calls=ROWS, capacity=8)
        assert lm.call_count == ROWS
        assert here.questions() == ALL

    def test_enough_is_enough(self, here):
        report = here.run(lm=model(), max_calls=ROWS, max_tokens=ROWS * 1000, max_cost=100.0)
        assert (report.status, report.rows_out) == ("finished", ROWS)

    def test_without_a_folder_it_says_that_nothing_is_kept(self, here):
        error = here.stops(lm=model(), max_calls=5, state=None)
        assert "begins anew" in str(error)
        assert (error.report.calls, error.report.rows_out) == (5, 5)

    def test_a_list_is_never_silently_short(self, here):
        with pytest.raises(BudgetExceeded):
            here.stream().to_list(lm=model(), max_calls=5)

    def test_a_model_without_a_price_cannot_have_a_budget_in_dollars(self, here):
        lm = LM("openai/nobody-knows", api_base="http://127.0.0.1:9/v1")
        with pytest.raises(LMConfigurationError, match="nobody-knows"):
            here.run(lm=lm, max_cost=1.0)
        assert not here.out.exists()

    def test_a_price_of_the_run_will_do(self, here):
        lm = model(model="openai/my-own")
        with pytest.raises(LMConfigurationError, match="my-own"):
            here.run(lm=lm, max_cost=1.0)
        here.stops(lm=lm, max_cost=0.1, prices={"openai/my-own": Price(1.0, 1.0)})


class Chain(Module):
    """Three calls a row, and a program that makes the best of any error."""

    def __init__(self, greedy=False):
        self.ask = Predict("question -> answer")
        self.greedy = greedy

    def forward(self, question):
        answers = []
        for turn in range(3):
            try:
                answers.append(self.ask(question=f"{question}-{turn}").answer)
            except Exception:
                if not self.greedy:
                    raise
                answers.append("?")
        return Prediction(answers=answers)


class TestPrograms:
    @pytest.mark.parametrize("greedy", [False, True])
    def test_a_row_half_way_through_is_held_and_goes_on(self, here, greedy):
        lm = model()
        stopped = here.stops(here.stream(Chain(greedy)), lm=lm, max_calls=50, capacity=16)
        assert lm.call_count == 50
        assert stopped.report.rows_out <= 50 // 3
        here.run(here.stream(Chain(greedy)), lm=lm, capacity=16)
        assert lm.call_count == 3 * ROWS, "nothing was paid twice"
        rows = [orjson.loads(line) for line in here.out.read_bytes().splitlines()]
        assert len(rows) == ROWS
        assert all("?" not in row["answers"] for row in rows), "no row came out without its answers"

    @pytest.mark.parametrize("on_error", ["skip", "stop", "dead_letter"])
    def test_whatever_the_step_does_with_failures(self, here, on_error):
        lm = model()
        here.stops(here.stream(on_error=on_error), lm=lm, max_calls=10)
        report = here.run(here.stream(on_error=on_error), lm=lm)
        assert (report.rows_out, report.dropped, report.dead_letters) == (ROWS, 0, 0)

    def test_ordered_steps_and_several_of_them(self, here):
        lm = model()
        stream = (
            here.stream(order="ordered")
            .rename(answer="question", question="first")
            .through(Predict("question -> answer"))
        )
        here.stops(stream, lm=lm, max_calls=70, capacity=8)
        report = here.run(stream, lm=lm, capacity=8)
        assert (report.rows_out, lm.call_count) == (ROWS, 2 * ROWS)
        assert [(part.step, part.calls) for part in report.usage] == [("01_ask", ROWS), ("03_Predict", ROWS)]

    def test_time_spent_waiting_for_a_place_is_no_failure_of_the_row(self, here):
        async def slowly(request):
            await asyncio.sleep(0.05)
            return Response((Choice("[[ ## answer ## ]]\nx"),), Usage(90, 10, 0.01))

        lm = ScriptedLM(slowly, cache=True)
        # One call at a time until the first answer, then two: most rows wait longer than a row may take.
        here.stops(here.stream(timeout=0.4), lm=lm, max_tokens=1500, capacity=64)
        assert here.letters() == []


class TestAttempts:
    @pytest.mark.parametrize("limit", [{"max_tokens": 6000}, {"max_cost": 6000e-6}])
    def test_what_a_server_did_for_attempts_of_an_earlier_process_counts(self, here, limit):
        """It counts 330 tokens for every request; of every second one the answer never arrives."""
        used = {"prompt_tokens": 300, "completion_tokens": 30}
        server = ModelServer(
            then=lambda seen: Reply(
                completion("[[ ## answer ## ]]\nx", usage=used),
                **({"declared": 5000, "end": "close"} if len(server.seen) % 2 else {}),
            )
        )
        runtime.run(server.__aenter__())
        try:
            lm = LM("openai/own", api_base=server.url, api_key="k", num_retries=3)
            options = {"lm": lm, "capacity": 1, "prices": {"openai/own": Price(1.0, 1.0)}}
            here.stops(max_calls=10, **options)
            assert len(server.seen) == 10
            here.stops(**limit, **options)
        finally:
            runtime.run(server.__aexit__())
        assert 5000 <= len(server.seen) * 330 <= 6000 + 330, "one call in flight may go over"

    def test_attempts_that_may_have_been_charged_count(self, here):
        """The client gave up, and the server may have done the work: both are counted."""
        seen = []

        def answer(request):
            seen.append(1)
            if len(seen) % 2:
                raise LMTimeoutError("not finished within 1 s")
            return {"answer": "x"}

        lm = ScriptedLM(answer, cache=True, num_retries=3)
        stopped = here.stops(lm=lm, max_calls=6, capacity=1, limit=8)
        assert len(seen) == 6, "exactly as many requests as were allowed"
        assert (stopped.report.calls, stopped.report.lost) == (3, 3)
        report = here.run(lm=lm, max_calls=1000, capacity=8, limit=8)
        assert report.calls == 8
        assert report.lost == len(seen) - 8
        assert here.letters() == []

    def test_what_is_unknown_counts_in_later_processes_too(self, here):
        seen = []

        async def answer(request):
            seen.append(1)
            used = Usage(90, 10, 0.01) if len(seen) % 2 else Usage(90, 10, None)
            return Response((Choice("[[ ## answer ## ]]\nx", "stop"),), used)

        options = {"lm": ScriptedLM(answer), "capacity": 1, "prices": {"scripted/model": Price(100.0, 100.0)}}
        here.stops(max_calls=20, **options)
        here.stops(max_cost=0.2, **options)
        assert len(seen) == 20, "ten cost ten cents, and the other ten as much"

    def test_refusals_cost_nothing(self, here):
        seen = []

        def answer(request):
            seen.append(1)
            if len(seen) % 2:
                raise LMServerError("busy", status=503)
            return {"answer": "x"}

        lm = ScriptedLM(answer, cache=True, num_retries=20)
        report = here.run(lm=lm, max_calls=8, capacity=8, limit=8)
        assert (report.calls, report.lost, report.rows_out) == (8, 0, 8)
        assert len(seen) > 8


class TestReport:
    def test_tells_steps_and_models_apart(self, here):
        first, second = Predict("question -> answer"), Predict("question -> answer")
        first.lm = model(Usage(100, 20, 0.5, cached_tokens=40), model="scripted/dear")
        second.lm = model(Usage(10, 2, None, reasoning_tokens=1), model="scripted/unknown")
        stream = here.stream(first).rename(answer="question", question="was").through(second, name="again")
        report = here.run(stream)
        dear, unknown = report.usage
        assert (dear.step, dear.model, dear.calls, dear.cost, dear.cached_tokens) == (
            *("01_ask", "scripted/dear"),
            *(ROWS, 0.5 * ROWS, 40 * ROWS),
        )
        assert (unknown.step, unknown.model, unknown.cost, unknown.priced) == (
            *("03_again", "scripted/unknown"),
            *(None, 0),
        )
        assert (report.calls, report.priced, report.cost) == (2 * ROWS, ROWS, 0.5 * ROWS)
        assert report.reasoning_tokens == ROWS
        data = report.to_json()
        assert data["calls_with_known_cost"] == ROWS
        assert [part["model"] for part in data["usage"]] == ["scripted/dear", "scripted/unknown"]

    def test_hits_are_told_apart_too_and_survive_restarts(self, here):
        lm = model()
        here.run(here.stream(), lm=lm)
        here.input.write_bytes(here.input.read_bytes() + b'{"question":"new"}\n{"question":"newer"}\n')
        here.stops(lm=lm, max_calls=1, capacity=1)
        report = here.run(lm=lm, capacity=1)
        (part,) = report.usage
        assert (part.calls, part.hits >= ROWS) == (2, True)

    @pytest.mark.parametrize("kept", [False, True])
    def test_unknown_is_not_free(self, here, kept):
        report = here.run(lm=model(Usage(5, 5)), **({} if kept else {"state": None}))
        assert (report.cost, report.priced, report.calls) == (None, 0, ROWS)


class TestAround:
    def test_a_budget_around_several_runs_holds_for_all_of_them(self, here):
        lm = model(cache=False)
        with Budget(max_calls=ROWS + 10) as budget:
            here.stream().to_list(lm=lm)
            with pytest.raises(BudgetExceeded):
                here.run(lm=lm, max_calls=1000, capacity=4)
        assert budget.calls == lm.call_count == ROWS + 10
        here.run(lm=lm, capacity=4)
        assert lm.call_count == 2 * ROWS
        assert here.questions() == ALL
