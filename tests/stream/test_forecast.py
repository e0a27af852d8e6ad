"""The dry run: what it foresees, what it does not touch, and how near it comes."""

import hashlib
import itertools
import os
from typing import Literal

import pytest

from dspy_stream.errors import FlowError, InputError, LMNotConfiguredError
from dspy_stream.lm import LM, Price
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.compose import Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.route import Route
from dspy_stream.program import InputField, OutputField, Prediction, Signature
from dspy_stream.stream import Stream
from dspy_stream.stream.sampling import sample
from dspy_stream.stream.sources import from_iterable, read
from dspy_stream.types import Choice, Response, Usage

ROWS = 200


def asked(request):
    return request.tail[0].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]


def model(**options):
    """Counts a token for three bytes of prompt, and answers with 40."""

    def answer(request):
        size = sum(len(message.content) for message in request.messages)
        reply = f"[[ ## answer ## ]]\n{asked(request).upper()}"
        return Response((Choice(reply, "stop"),), Usage(size // 3, 40, 0.001))

    return ScriptedLM(answer, cache=True, **options)


PRICES = {"scripted/model": Price(1.0, 10.0, batch=0.5)}


class Here:
    def __init__(self, path):
        self.path = path
        self.state = path / "state"
        self.out = path / "out.jsonl"
        self.input = path / "in.jsonl"
        lines = [b'{"question":"%d %s"}\n' % (n, b"x" * (n % 50)) for n in range(ROWS)]
        self.input.write_bytes(b"".join(lines))

    def stream(self, *programs):
        stream = Stream.read(self.input, name="qa")
        for program in programs or (Predict("question -> answer"),):
            stream = stream.through(program)
        return stream

    def dry(self, stream=None, **options):
        flow = (stream if stream is not None else self.stream()).write(self.out)
        return flow.dry_run(**{"state": self.state, "prices": PRICES, "lm": model(), **options})

    def run(self, stream=None, **options):
        flow = (stream if stream is not None else self.stream()).write(self.out)
        return flow.run(**{"state": self.state, "quiet": True, "prices": PRICES, **options})


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


def digest(folder):
    state = hashlib.sha256()
    for root, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            path = os.path.join(root, name)
            state.update(path.encode())
            with open(path, "rb") as file:
                state.update(file.read())
    return state.hexdigest()


class TestForeseeing:
    def test_calls_nothing_and_writes_nothing(self, here):
        lm = model()
        estimate = here.dry(lm=lm)
        assert lm.call_count == 0
        assert sorted(path.name for path in here.path.iterdir()) == ["in.jsonl"]
        assert (estimate.rows, estimate.counted, estimate.sampled) == (ROWS, True, 20)
        (step,) = estimate.steps
        assert (step.step, step.model, step.basis) == ("01_Predict", "scripted/model", "assumed")
        assert (round(step.calls), step.from_journal, step.cost is not None) == (ROWS, 0, True)

    def test_the_truth_lies_within_the_range(self, here):
        estimate = here.dry()
        report = here.run(lm=model())
        assert estimate.calls == pytest.approx(report.calls)
        assert estimate.prompt_tokens.low < report.prompt_tokens < estimate.prompt_tokens.high
        assert estimate.completion_tokens.low < report.completion_tokens < estimate.completion_tokens.high

    def test_an_earlier_run_makes_it_sharp(self, here):
        here.run(lm=model(), limit=50)
        estimate = here.dry(sample=40)
        (step,) = estimate.steps
        assert step.basis == "observed"
        assert step.from_journal == pytest.approx(50, abs=25)
        before = here.run(lm=model(), limit=50, fresh=True)
        report = here.run(lm=model(), fresh=True)
        paid = report.calls - before.calls
        assert estimate.calls == pytest.approx(paid, abs=25)
        assert estimate.completion_tokens.expected / estimate.calls == pytest.approx(40)
        each = report.prompt_tokens / report.calls
        assert estimate.prompt_tokens.expected / estimate.calls == pytest.approx(each, rel=0.1)

    def test_rows_in_the_journal_cost_nothing(self, here):
        here.run(lm=model())
        before = digest(here.state), here.out.read_bytes()
        estimate = here.dry()
        assert (digest(here.state), here.out.read_bytes()) == before, "and nothing was changed"
        (step,) = estimate.steps
        assert (round(step.calls), round(step.from_journal)) == (ROWS, ROWS)
        assert estimate.cost == (0.0, 0.0, 0.0)

    def test_the_same_question_twice_is_paid_once(self, here):
        here.input.write_bytes(b'{"question":"same"}\n' * 10)
        estimate = here.dry()
        assert (round(estimate.calls), round(estimate.from_journal)) == (1, 9)

    def test_prices_of_batches_and_limits_of_answers(self, here):
        (step,) = here.dry().steps
        limited = here.dry(lm=model(max_tokens=5)).completion_tokens
        assert (limited.expected, limited.high) == (5 * ROWS, 5 * ROWS)
        assert step.cost.expected == pytest.approx(
            (step.prompt_tokens.expected + 10 * step.completion_tokens.expected) / 1e6, rel=0.01
        )

    def test_no_key_is_needed(self, here, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        estimate = here.dry(lm="openai/gpt-4o-mini", prices=None)
        assert 0 < estimate.cost.low < estimate.cost.expected < estimate.cost.high

    def test_an_unknown_price_is_not_free(self, here):
        estimate = here.dry(lm=LM("openai/nobody-knows", api_base="http://127.0.0.1:9/v1"))
        assert (estimate.cost, estimate.unpriced) == (None, ("openai/nobody-knows",))
        assert estimate.to_json()["cost"] is None

    def test_a_model_that_thinks_is_said_to(self, here):
        estimate = here.dry(lm=LM("openai/gpt-5-mini", api_base="http://127.0.0.1:9/v1"))
        assert "thinks before it answers" in estimate.notes[0]


class Triage(Signature):
    """Decide."""

    question: str = InputField()
    intent: Literal["lost", "found"] = OutputField()
    urgency: int = OutputField(ge=1, le=5)
    answer: str = OutputField()


class Loop(Module):
    """Asks until it is content, which it never is."""

    def __init__(self):
        self.ask = Predict("question -> done: bool")

    def forward(self, question):
        turns = itertools.count()
        while self.ask(question=f"{question} {next(turns)}").done is not None:
            pass
        return Prediction(turns=turns)


class Counting(Module):
    def __init__(self, calls, aware=False):
        self.ask = Predict("question -> answer")
        self.calls = calls

    async def aforward(self, question):
        for turn in range(self.calls):
            await self.ask.acall(question=f"{question} {turn}")
        return Prediction(answer="x")


class TestSteps:
    def test_made_up_answers_lead_on(self, here):
        stream = (
            here.stream(ChainOfThought(Triage))
            .filter(lambda row: row.urgency in range(1, 6) and row.intent in ("lost", "found"))
            .through(Predict("question, answer, urgency: int -> reply"))
        )
        estimate = here.dry(stream)
        assert [step.step for step in estimate.steps] == ["01_ChainOfThought", "03_Predict"]
        assert [round(step.calls) for step in estimate.steps] == [ROWS, ROWS]
        assert estimate.steps[0].completion_tokens.expected > estimate.steps[1].completion_tokens.expected
        assert estimate.notes == ()

    @pytest.mark.parametrize("program", [Counting(3)])
    def test_all_calls_of_a_program_count(self, here, program):
        assert round(here.dry(here.stream(program)).calls) == 3 * ROWS

    def test_what_a_filter_drops_is_not_paid_for(self, here):
        stream = here.stream().filter(lambda row: int(row.question.split()[0]) % 4 == 0)
        estimate = here.dry(stream.through(Predict("answer -> short")), sample=100)
        assert estimate.steps[1].calls == pytest.approx(ROWS / 4, abs=20)

    def test_more_rows_fewer_rows_and_two_sides(self, here):
        stream = here.stream(Predict("question -> answer"))
        yes, no = stream.branch(lambda row: int(row.question.split()[0]) % 2)
        both = yes.flat_map(lambda row: [row, row]).through(Predict("answer -> a")).write(here.out)
        flow = both.also(
            no.batch(10).through(Predict("answer: list[str] -> b")).write(here.path / "no.jsonl")
        )
        estimate = flow.dry_run(state=None, lm=model(), sample=ROWS)
        # The two rows of each pair ask the same, so that one of them is answered by the journal.
        assert sorted(round(step.calls) for step in estimate.steps) == [10, ROWS, ROWS]

    def test_rows_that_cannot_be_followed_are_told_of_and_made_up_for(self, here):
        def picky(row):
            if int(row.question.split()[0]) % 2:
                raise ValueError("odd")
            return row

        estimate = here.dry(here.stream().map(picky).through(Predict("answer -> short")), sample=ROWS)
        assert round(estimate.steps[1].calls) == ROWS
        assert "02_map: 100 of 200 sampled rows could not be followed" in estimate.notes[0]

    def test_questions_about_made_up_answers_are_not_taken_for_one(self, here):
        stream = here.stream(Predict("question -> answer"), Predict("answer -> short"))
        assert [step.from_journal for step in here.dry(stream, sample=20).steps] == [0, 0]

    def test_but_those_of_rows_that_asked_the_same_before_are(self, here):
        lines = [b'{"question":"%d","n":%d}\n' % (n // 2, n) for n in range(ROWS)]
        here.input.write_bytes(b"".join(lines))
        stream = here.stream(Predict("question -> answer"), Predict("answer -> short"))
        again = stream.flat_map(lambda row: [row, row]).through(Predict("short -> last"))
        steps = here.dry(again, sample=ROWS).steps
        assert [round(step.calls) for step in steps] == [ROWS, ROWS, 2 * ROWS]
        assert [round(step.calls - step.from_journal) for step in steps] == [ROWS / 2] * 3

    @pytest.mark.parametrize("split", [False, True])
    def test_where_none_can_the_steps_after_it_are_estimated_all_the_same(self, here, split):
        def strict(answer):
            assert answer == "a real one", f"not {answer}"
            return {"checked": answer}

        program = Program(ask=Predict("question -> answer"), check=strict)
        stream = Stream.read(here.input).through(program, split=split).through(Predict("answer -> short"))
        estimate = here.dry(stream, sample=2)
        assert [round(step.calls) for step in estimate.steps] == [ROWS, ROWS]
        (note,) = estimate.notes
        assert "2 of 2 sampled rows could not be followed further (AssertionError: not An answer" in note
        assert "the answers that it was given are made up: later steps are estimated as if" in note

    def test_but_not_those_of_a_part_that_nobody_can_choose(self, here):
        route = Route(lambda row: {"real": 0}[row.answer], {0: Predict("answer -> short")})
        estimate = here.dry(here.stream().through(route), sample=2)
        assert [round(step.calls) for step in estimate.steps] == [ROWS]
        assert "2 of 2 sampled rows" in estimate.notes[0]

    def test_a_program_that_is_never_content_is_left(self, here):
        estimate = here.dry(here.stream(Loop()), sample=2)
        assert "more than 64 calls" in estimate.notes[0]

    def test_a_model_called_directly_is_not_called(self, here):
        lm = model()

        class Direct(Module):
            async def aforward(self, question):
                return Prediction(answer=(await lm.acall(question))[0])

        estimate = here.dry(here.stream(Direct()))
        assert lm.call_count == 0
        assert "BudgetExceeded" in estimate.notes[0]

    def test_a_field_that_no_row_has_is_found(self, here):
        with pytest.raises(InputError, match="needs"):
            here.dry(here.stream(Predict("nothing -> answer")))

    def test_no_model_is_an_error(self, here):
        with pytest.raises(LMNotConfiguredError):
            here.stream().write(here.out).dry_run(state=None)


class TestSampling:
    def test_is_even_and_the_same_every_time(self, here):
        found = sample(read(here.input), 20)
        numbers = [int(row.question.split()[0]) for row in found.rows]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == 20
        assert max(numbers) > ROWS * 0.6
        assert sample(read(here.input), 20) == found
        assert found.weight == ROWS / 20

    def test_everything_where_there_is_little(self, here):
        found = sample(read(here.input), 1000)
        assert (len(found.rows), found.whole, found.weight) == (ROWS, True, 1.0)

    def test_bad_rows_cost_nothing(self, here):
        here.input.write_bytes(here.input.read_bytes() + b"no json\n" * 5)
        found = sample(read(here.input), 20)
        assert found.total == ROWS
        assert "5 of 205 rows" in found.notes[0]

    def test_of_a_large_input_the_beginning(self, here, monkeypatch):
        monkeypatch.setattr("dspy_stream.stream.sampling._WHOLE", 1000)
        monkeypatch.setattr("dspy_stream.stream.sampling._BEGINNING", 100)
        found = sample(read(here.input), 20)
        assert not found.counted
        assert found.total == pytest.approx(ROWS, rel=0.5)
        frame = sample(from_iterable([{"question": str(n)} for n in range(500)]), 20)
        assert (frame.total, frame.counted, frame.whole) == (500, True, False)

    def test_a_live_input_is_left_alone(self, here):
        taken = []
        flow = Stream.from_iterable(taken.append(n) or {"question": str(n)} for n in range(5)).through(
            Predict("question -> answer")
        )
        with pytest.raises(FlowError, match="only once"):
            flow.compile().dry_run(lm=model(), state=None)
        assert taken == []

    def test_an_empty_input(self, here):
        here.input.write_bytes(b"")
        estimate = here.dry()
        assert (estimate.rows, estimate.steps, estimate.cost) == (0, (), (0.0, 0.0, 0.0))

    def test_as_if_fewer_rows_were_read(self, here):
        assert round(here.dry(limit=30).calls) == 30


class TestPrograms:
    """Each part is a step, and is foreseen as one."""

    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    def test_a_route_by_what_the_input_says(self, here, order):
        route = Route(
            lambda record: int(record.question.split()[0]) % 4 == 0,
            {True: Predict("question -> answer").using(name="rare")},
            default=Predict("question -> answer, why").using(name="often"),
        )
        stream = Stream.read(here.input, name="qa").through(route, order=order)
        found = here.dry(stream.through(Predict("answer -> short"), name="last"), sample=ROWS)
        calls = {step.step.partition("_")[2]: round(step.calls) for step in found.steps}
        assert calls == {"rare": 50, "often": 150, "last": 200}
        assert found.notes == ()

    def test_a_fork_and_what_comes_after_it(self, here):
        program = Program(
            both=Fork(
                x=Predict("question -> answer"), y=Predict("question -> mood").using(outputs={"mood": "tone"})
            ),
            end=Predict("answer, tone -> reply"),
        )
        found = here.dry(Stream.read(here.input, name="qa").through(program), sample=20)
        assert found.notes == ()
        assert len(found.steps) == 3
        # Made-up answers are all the same: of the questions about them, one is asked.
        assert [round(step.calls + step.from_journal) for step in found.steps[:2]] == [ROWS] * 2

    def test_a_record_that_no_part_is_for_is_noted(self, here):
        route = Route("question", {"never": Predict("question -> answer")})
        found = here.dry(Stream.read(here.input, name="qa").through(route), sample=5)
        assert found.steps == ()
        assert any("no route for" in note for note in found.notes)
