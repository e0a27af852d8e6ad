"""What a step does with a row, and how it judges failures: pure decisions under a clock of our own."""

import asyncio
import contextlib

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.engine import Ticket
from dspy_stream.errors import (
    AdapterParseError,
    LMAuthError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMServerError,
    LMUnavailableError,
    PoisonRow,
    RecordError,
    RowTimeout,
)
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.modules.scope import SCOPE, TICKET, Clients, Scope
from dspy_stream.modules.together import GUARD
from dspy_stream.program import Prediction
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.runtime import Ask
from dspy_stream.stream.ask import Again
from dspy_stream.stream.job import Job
from dspy_stream.stream.work import Dropped, ModuleWork, Policy
from dspy_stream.types import Choice, Response

ROW = Row("r1", {"question": "q", "extra": 1}, Origin("s", "p", 0))
OTHER = Row("r2", {"question": "q"}, Origin("s", "p", 1))


@pytest.fixture(autouse=True)
def no_row_stays_in_force():
    """A step's `begin` says whose row runs from then on; no other test's calls are that row's."""
    yield
    TICKET.set(None)
    GUARD.set(None)


def work_of(module=None, **policy):
    clock = FakeClock(1000.0)
    job = Job("flow", "digest", clock=clock)
    made = ModuleWork(
        "01_step",
        module or Predict("question -> answer"),
        Policy(**policy),
        run_id="run",
        letters=job,
        watch=job,
        clock=clock,
    )
    return made, clock


def ticket(attempt=1):
    return Ticket("run", "01_step", "r1", attempt)


def answered(model):
    """The ticket of an attempt in which a model gave an answer."""
    made = ticket()
    made.count(Response((Choice("x"),)), model)
    return made


class TestInputs:
    def seen(self, module):
        work, _ = work_of(module)
        return dict(work._inputs(ROW))

    def test_are_those_that_the_module_names(self):
        class Named(Module):
            def forward(self, question, style="brief"):
                pass

        class All(Module):
            def forward(self, **fields):
                pass

        assert self.seen(Predict("question -> answer")) == {"question": "q"}
        assert self.seen(Named()) == {"question": "q"}
        assert self.seen(All()) == {"question": "q", "extra": 1}

    def test_one_that_is_missing_is_named(self):
        work, _ = work_of(Predict("context -> answer"))
        with pytest.raises(
            RecordError, match="01_step needs the field 'context'; the row has: question, extra"
        ):
            work.begin(ROW, None)

    def test_the_ticket_names_run_step_and_row(self):
        work, _ = work_of()
        _, first = work.begin(ROW, None)
        assert (first.run_id, first.step, first.row_id, first.attempt, first.fresh) == (
            "run",
            "01_step",
            "r1",
            1,
            False,
        )
        assert TICKET.get() is first
        _, second = work.begin(ROW, first)
        assert second.attempt == 2
        TICKET.set(None)

    def test_anew_is_on_every_ticket_of_its_row(self):
        assert not work_of(anew=frozenset({"another"}))[0].begin(ROW, None)[1].fresh
        work, _ = work_of(anew=frozenset({ROW.id}))
        _, first = work.begin(ROW, None)
        _, second = work.begin(ROW, first)
        assert first.fresh
        assert second.fresh
        TICKET.set(None)


class TestOutputs:
    @pytest.mark.parametrize("value", [{"answer": "x"}, Prediction(answer="x")])
    def test_are_added_to_the_row(self, value):
        work, _ = work_of()
        made = work.finish(ROW, value, ticket())
        assert made == ROW.with_fields(answer="x")

    def test_replace_a_field_of_their_name(self):
        work, _ = work_of()
        assert work.finish(ROW, {"extra": 2}, ticket()).extra == 2

    def test_of_another_kind_are_an_error(self):
        work, _ = work_of()
        with pytest.raises(TypeError, match="01_step returned str"):
            work.finish(ROW, "x", ticket())

    def test_what_is_no_row_passes(self):
        work, _ = work_of()
        assert not work.passes(ROW)
        assert work.passes(Dropped("r"))


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "stage", "code"),
        [
            (AdapterParseError("A", None, "x", "no field"), "parse", "parse"),
            (LMInvalidRequestError("no"), "call", "invalid_request"),
            (RecordError("no field"), "check", "bad_record"),
            (PoisonRow("died"), "process", "poison"),
            (RowTimeout("late"), "module", "timeout"),
            (KeyError("x"), "module", "exception"),
        ],
    )
    def test_become_a_dead_letter_with_its_stage(self, error, stage, code):
        work, _ = work_of()
        made = work.fail(ROW, error, ticket())
        assert isinstance(made, DeadLetter)
        assert (made.stage, made.error["code"], made.step, made.flow) == (stage, code, "01_step", "flow")
        assert made.first_seen.startswith("1970-01-01T00:16:40")

    def test_are_tried_again_as_often_as_the_step_says(self):
        work, _ = work_of(retries=2)
        assert work.fail(ROW, KeyError("x"), ticket(1)) == Again(0.0)
        assert work.fail(ROW, KeyError("x"), ticket(2)) == Again(0.0)
        assert work.fail(ROW, KeyError("x"), ticket(3)).attempts == 3

    @pytest.mark.parametrize("error", [RecordError("x"), PoisonRow("x")])
    def test_that_cannot_pass_are_not_tried_again(self, error):
        work, _ = work_of(retries=5)
        assert isinstance(work.fail(ROW, error, ticket()), DeadLetter)

    @pytest.mark.parametrize(
        "error", [LMAuthError("no key"), KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()]
    )
    def test_of_the_flow_are_raised(self, error):
        work, _ = work_of(on_error="skip", retries=9)
        with pytest.raises(type(error)):
            work.fail(ROW, error, ticket())

    def test_of_rows_that_were_tried_again_while_others_passed_are_not_in_a_row(self):
        """Bad rows that are tried again gather behind the good ones, and then end one after the other."""
        work, _ = work_of(retries=1)
        streak = work._streak

        def row(name):
            return Row(name, {"question": "q"}, Origin("m", "p", 0))

        bad = [row(f"bad{number}") for number in range(5)]
        for one in bad:
            assert work.fail(one, KeyError("x"), ticket(1)) == Again(0.0)
        work.finish(row("good"), {"answer": "a"}, ticket(1))
        for one in bad:
            assert isinstance(work.fail(one, KeyError("x"), ticket(2)), DeadLetter)
        assert streak.count == 0
        for one in bad:  # nobody passes any more
            work.fail(one, KeyError("x"), ticket(1))
            work.fail(one, KeyError("x"), ticket(2))
        assert streak.count == 5
        assert work._tried == {}

    def test_skip_and_stop(self):
        assert work_of(on_error="skip")[0].fail(ROW, KeyError("x"), ticket()) == Dropped("r1")
        with pytest.raises(KeyError):
            work_of(on_error="stop")[0].fail(ROW, KeyError("x"), ticket())


class TestOutage:
    """A model that is down is not the fault of a row."""

    def test_while_no_row_is_answered_every_row_waits(self):
        work, clock = work_of(outage=300.0)
        clock.advance(10.0)
        for attempt in range(1, 50):
            made = work.fail(ROW, LMServerError("down"), ticket(attempt))
            assert isinstance(made, Again)
            assert 0.5 <= made.delay <= 3.0

    def test_after_the_outage_the_flow_ends_with_the_error(self):
        work, clock = work_of(outage=300.0, probing=False)
        clock.advance(301.0)
        down = LMServerError("down")
        for _ in range(2):  # another row that asked the same
            with pytest.raises(LMServerError) as ended:
                work.fail(ROW, down, ticket())
            assert str(ended.value) == "down; no answer for 301 s, of outage=300: the flow ends"

    def test_an_answer_ends_the_outage(self):
        work, clock = work_of(outage=300.0)
        clock.advance(299.0)
        work.finish(ROW, {"answer": "x"}, ticket())
        clock.advance(10.0)
        assert isinstance(work.fail(ROW, LMServerError("down"), ticket()), Again)

    def failing(self, work, error, times, others=100):
        """What becomes of the row at each failure, while so many others are answered between them."""
        made = []
        for attempt in range(1, times + 1):
            made.append(type(work.fail(ROW, error, ticket(attempt))))
            for _ in range(others):
                work.finish(OTHER, {"answer": "x"}, answered("m"))
        return made

    def test_while_others_are_answered_a_row_that_keeps_failing_is_given_up(self):
        work, _ = work_of()
        made = self.failing(work, LMServerError("slow", model="m"), 4)
        assert made == [Again, Again, Again, DeadLetter]

    def test_more_retries_give_it_more_time(self):
        work, _ = work_of(retries=5)
        made = self.failing(work, LMServerError("slow", model="m"), 6)
        assert made == [*[Again] * 5, DeadLetter]

    def test_answers_of_another_model_do_not_speak_against_it(self):
        work, _ = work_of()
        made = self.failing(work, LMServerError("slow", model="another"), 200)
        assert set(made) == {Again}

    @pytest.mark.parametrize(
        "error", [LMRateLimitError("429", model="m"), LMUnavailableError("x", model="m")]
    )
    def test_a_rate_limit_or_an_open_circuit_is_never_the_row_s_fault(self, error):
        work, _ = work_of()
        assert set(self.failing(work, error, 200)) == {Again}

    def test_attempts_that_an_outage_cost_are_not_the_row_s_own(self):
        work, _ = work_of(retries=1)
        for attempt in range(1, 10):
            assert isinstance(work.fail(ROW, LMServerError("down"), ticket(attempt)), Again)
        assert isinstance(work.fail(ROW, KeyError("x"), ticket(10)), Again)
        made = work.fail(ROW, KeyError("x"), ticket(11))
        assert (type(made), made.attempts) == (DeadLetter, 11)

    def test_a_row_waits_as_long_as_the_provider_says(self):
        work, _ = work_of()
        assert work.fail(ROW, LMUnavailableError("x", retry_after=17.0), ticket()).delay == 17.0

    def test_but_not_before_a_question_of_our_own_was_asked_in_vain(self):
        work, clock = work_of(outage=300.0)
        down = LMServerError("down", model="scripted/m")
        lm = ScriptedLM("yes", model="scripted/m")
        clients = Clients(None)
        clients.get(lm)
        token = SCOPE.set(Scope(clients, lm=lm))
        try:
            clock.advance(301.0)
            _, last = work.begin(ROW, None)
            clock.advance(301.0)
            assert not work.attempt_failed(down)  # the row is to be judged
            assert isinstance(work.fail(ROW, down, last), Again)
            steps, last = work.begin(ROW, last)
            assert next(steps).request.messages[0].content == "Answer with one word: yes."
            assert not work.attempt_failed(down)  # that is not repeated
            steps.throw(down)
            with pytest.raises(LMServerError, match="down"):
                work.fail(ROW, down, last)
        finally:
            SCOPE.reset(token)

    def test_time_in_which_nobody_asks_does_not_count(self):
        work, clock = work_of(outage=300.0, probing=False)
        work.begin(OTHER, None)
        work.finish(OTHER, {"answer": "x"}, ticket())
        clock.advance(10_000.0)
        work.begin(ROW, None)
        clock.advance(1.0)
        assert isinstance(work.fail(ROW, LMServerError("down"), ticket()), Again)
        clock.advance(300.0)
        with pytest.raises(LMServerError):
            work.fail(ROW, LMServerError("down"), ticket())
        TICKET.set(None)

    def test_a_refusal_is_an_answer(self):
        work, clock = work_of(outage=300.0)
        clock.advance(299.0)
        work.fail(OTHER, LMInvalidRequestError("400", model="m", status=400), ticket())
        clock.advance(10.0)
        assert isinstance(work.fail(ROW, LMServerError("down", model="m"), ticket()), Again)

    def test_the_journal_s_answers_say_nothing(self):
        work, clock = work_of(outage=300.0, probing=False)
        clock.advance(299.0)
        hit = ticket()
        hit.count(Response((Choice("x"),), cached=True), "m")
        work.finish(OTHER, {"answer": "x"}, hit)
        clock.advance(10.0)
        with pytest.raises(LMServerError):
            work.fail(ROW, LMServerError("down", model="m"), ticket())

    def test_a_call_is_told_to_give_up_when_the_flow_has(self):
        work, clock = work_of(outage=300.0)
        assert work.attempt_failed(LMServerError("down"))
        clock.advance(301.0)
        assert not work.attempt_failed(LMServerError("down"))

    def test_a_step_s_time_limit_that_ran_out_in_an_outage_is_not_the_row_s_fault(self):
        work, clock = work_of(outage=300.0, timeout=60.0)
        assert isinstance(work.fail(OTHER, RowTimeout("late"), ticket()), DeadLetter)
        clock.advance(20.0)
        work.attempt_failed(LMServerError("down", model="m"))
        clock.advance(40.0)
        assert isinstance(work.fail(ROW, RowTimeout("late"), ticket()), Again)
        work.finish(OTHER, {"answer": "x"}, answered("m"))
        assert isinstance(work.fail(ROW, RowTimeout("late"), ticket(2)), DeadLetter)

    def test_it_is_told_of_at_most_twice_a_minute_and_once_when_it_is_over(self, caplog):
        work, clock = work_of(outage=300.0)
        with caplog.at_level("WARNING", "dspy_stream"):
            for _ in range(61):
                clock.advance(1.0)
                work.attempt_failed(LMServerError("503: overloaded", model="m"))
            for _ in range(5):
                work.finish(OTHER, {"answer": "x"}, answered("m"))
        said = [record.getMessage() for record in caplog.records]
        waits = "01_step: the model does not answer, the rows wait for it: [m] 503: overloaded"
        assert said == [waits, waits, "01_step: the model answers again, after 61 s"]

    def test_it_is_over_also_where_nobody_said_which_model_it_was(self, caplog):
        work, clock = work_of(outage=300.0)
        with caplog.at_level("WARNING", "dspy_stream"):
            clock.advance(10.0)
            work.attempt_failed(LMServerError("503"))
            work.finish(OTHER, {"answer": "x"}, answered("m"))
        assert [record.getMessage()[-5:] for record in caplog.records] == [": 503", " 10 s"]

    def test_one_failure_is_not_worth_a_word(self, caplog):
        work, clock = work_of()
        with caplog.at_level("WARNING", "dspy_stream"):
            clock.advance(1.0)
            work.attempt_failed(LMServerError("503", model="m"))
            work.finish(OTHER, {"answer": "x"}, answered("m"))
        assert caplog.records == []


class TestALoneRow:
    """One that keeps failing while nobody else asks has its model asked something else first."""

    class Waits(Module):
        async def aforward(self, question):
            return {"answer": question}

    def begun(self, module, named):
        """The first effect of an attempt after the row has failed for a while."""
        down = LMServerError("down", status=503, model=named)
        clients = Clients(None)
        client = clients.get(ScriptedLM("yes", model="scripted/model"))
        clients.get(ScriptedLM("yes", model="scripted/other"))
        work, clock = work_of(module, outage=300.0)
        token = SCOPE.set(Scope(clients))
        try:
            steps, last = work.begin(ROW, None)
            steps.close()
            assert isinstance(work.fail(ROW, down, last), Again)
            clock.advance(20.0)
            steps, _ = work.begin(ROW, last)
            effect = next(steps)
        finally:
            SCOPE.reset(token)
        if asyncio.iscoroutine(effect):
            with contextlib.suppress(RuntimeError, StopIteration):  # begun, since nobody awaits it
                effect.send(None)
            effect.close()
        return effect, client

    def test_of_a_coroutine_too(self):
        effect, client = self.begun(self.Waits(), "scripted/model")
        assert isinstance(effect, Ask)
        assert (effect.client, effect.request.model) == (client, "scripted/model")

    @pytest.mark.parametrize("named", [None, "scripted/unknown"])
    def test_where_nobody_knows_the_model_it_is_not_asked(self, named):
        effect, _ = self.begun(self.Waits(), named)
        assert asyncio.iscoroutine(effect)
