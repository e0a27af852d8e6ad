"""What a stream does to rows, operation by operation, run for real."""

import asyncio
import dataclasses
import os
import signal
import threading

import orjson
import pytest

from dspy_stream.errors import (
    AdapterParseError,
    ConfigurationError,
    FlowError,
    InputError,
    LMAuthError,
    LMInvalidRequestError,
    RowError,
)
from dspy_stream.lm import LocalLM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.program import Prediction
from dspy_stream.rows import Row
from dspy_stream.stream import Stream
from dspy_stream.stream.job import Job
from dspy_stream.stream.sinks import MemorySink


def numbers(count):
    return Stream.from_iterable([{"n": number} for number in range(count)])


def questions(*texts):
    return Stream.from_iterable([{"question": text} for text in texts], name="qa")


def last_line(request, name="question"):
    return request.tail[0].content.split(f"[[ ## {name} ## ]]\n")[1].split("\n")[0]


def shout():
    """A model that answers with the question in capitals."""
    return ScriptedLM(lambda request: {"answer": last_line(request).upper()}, cache=True)


def run(stream, **options):
    """Run without state; the rows, the dead letters as envelopes, and the report."""
    rows, letters = MemorySink(), MemorySink()
    report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True, **options)
    assert report.rows_out == len(rows.rows)
    assert report.dead_letters == len(letters.rows)
    return rows.rows, [row.fields for row in letters.rows], report


class TestDescription:
    def test_a_stream_is_immutable_and_every_method_returns_another(self):
        stream = numbers(2)
        made = [
            stream.map(lambda row: row),
            stream.filter(lambda row: True),
            stream.flat_map(lambda row: []),
            stream.batch(2),
            stream.rename(n="m"),
            stream.select("n"),
            stream.through(Predict("n -> answer")),
            stream.using(lm=LocalLM()),
            stream.measure(one=lambda row: 1),
            stream.limit_failures(consecutive=1),
            *stream.branch(lambda row: True),
        ]
        assert all(type(one) is Stream and one is not stream for one in made)
        assert stream.to_list() == [{"n": 0}, {"n": 1}]
        assert not stream.defaults
        assert not stream.measures
        with pytest.raises(dataclasses.FrozenInstanceError):
            stream.name = "x"

    def test_two_streams_may_grow_from_one(self):
        base = numbers(3).filter(lambda row: row.n > 0)
        assert base.map(lambda row: {"n": -row.n}).to_list() == [{"n": -1}, {"n": -2}]
        assert base.rename(n="m").to_list() == [{"m": 1}, {"m": 2}]

    @pytest.mark.parametrize(
        ("build", "words"),
        [
            (lambda s: s.through("question -> answer"), r"such as Predict\(\.\.\.\), not str"),
            (lambda s: s.through(Predict("n -> m"), capacity=0), "capacity=0"),
            (lambda s: s.through(Predict("n -> m"), retries=-1), "retries=-1"),
            (lambda s: s.through(Predict("n -> m"), timeout=0), "timeout=0"),
            (
                lambda s: s.through(Predict("n -> m"), timeout=float("nan")),
                "timeout=nan: must be more than 0",
            ),
            (lambda s: s.through(Predict("n -> m"), timeout="5"), "timeout='5': must be more than 0"),
            (lambda s: s.through(Predict("n -> m"), capacity="3"), "capacity='3': must be a whole number"),
            (lambda s: s.through(Predict("n -> m"), retries=1.5), r"retries=1\.5: must be a whole number"),
            (lambda s: s.through(Predict("n -> m"), order="sorted"), "order='sorted'"),
            (lambda s: s.through(Predict("n -> m"), on_error="ignore"), "on_error='ignore'"),
            (lambda s: s.map(Predict("n -> m")), r"run it with through\(\)"),
            (lambda s: s.map(5), "5 is not a function"),
            (lambda s: s.filter(None), "None is not a function"),
            (lambda s: s.flat_map(asyncio.sleep), "coroutine function"),
            (lambda s: s.batch(0), "at least one row"),
            (lambda s: s.run(capactiy=3), "did you mean 'capacity'"),
            (lambda s: s.run(capacity=0), "capacity=0: must be at least 1"),
            (lambda s: s.run(workers=0), "workers=0"),
        ],
    )
    def test_mistakes_are_found_before_anything_runs(self, build, words):
        with pytest.raises(FlowError, match=words):
            build(numbers(1))

    def test_a_list_that_is_not_whole_is_never_returned(self, monkeypatch):
        stop, stopped = Job.stop, threading.Event()

        def stops(job, grace):
            stop(job, grace)
            stopped.set()

        async def answer(request):
            os.kill(os.getpid(), signal.SIGINT)  # once: the second one ends the process
            assert await asyncio.to_thread(stopped.wait, 30)
            return {"answer": "a"}

        monkeypatch.setattr(Job, "stop", stops)
        stream = questions("a", "b").through(Predict("question -> answer"), capacity=1)
        with pytest.raises(KeyboardInterrupt, match="stopped after"):
            stream.to_list(lm=ScriptedLM(answer))

    def test_no_number_of_retries_is_none(self):
        node = questions("a").through(Predict("question -> answer"), retries=None).node
        assert node.operation.retries == 0


class TestRowFunctions:
    def test_map_takes_a_row_or_a_mapping(self):
        assert numbers(2).map(lambda row: {"m": row.n}).to_list() == [{"m": 0}, {"m": 1}]
        assert numbers(1).map(lambda row: row.with_fields(m=1)).to_list() == [{"n": 0, "m": 1}]
        assert numbers(1).map(lambda row: Prediction(m=2)).to_list() == [{"m": 2}]

    def test_map_keeps_id_origin_and_raw(self):
        before, _, _ = run(numbers(3))
        after, _, _ = run(numbers(3).map(lambda row: Row("mine", {"m": 1}, None)))
        assert [(row.id, row.origin, row.record) for row in after] == [
            (row.id, row.origin, row.record) for row in before
        ]

    def test_rename_refuses_names_that_are_not_there_and_two_fields_with_one_name(self):
        rows = Stream.from_iterable([{"n": 0, "text": "a"}] * 3)
        with pytest.raises(
            InputError, match=r"no column .txet., which step 01_rename needs.*Did you mean .text."
        ):
            rows.rename(txet="m").to_list()
        for name in ("other", "intent"):
            assert rows.rename(**{name: "m"}).to_list() == [{"n": 0, "text": "a"}] * 3
        with pytest.raises(FlowError, match="two fields would be called 'n'; the rows have: n, text"):
            rows.rename(text="n").to_list()
        assert rows.rename(text="n", n="text").to_list() == [{"n": "a", "text": 0}] * 3
        uneven = [{"text": "a"}, {"n": 1, "text": "b"}, {"n": 2}]
        stream = Stream.from_iterable(uneven).map(lambda row: row).rename(text="n")
        done, letters, _ = run(stream)
        assert [dict(row.fields) for row in done] == [{"n": "a"}, {"n": 2}]
        assert "two fields would be called 'n'" in letters[0]["error"]["message"]

    def test_filter_counts_what_it_drops(self):
        rows, _, report = run(numbers(10).filter(lambda row: row.n % 3 == 0))
        assert [row.n for row in rows] == [0, 3, 6, 9]
        assert (report.rows_in, report.rows_out, report.dropped) == (10, 4, 6)

    def test_flat_map_numbers_the_ids(self):
        rows, _, report = run(numbers(3).flat_map(lambda row: [{"k": k} for k in range(row.n)]))
        assert [row.k for row in rows] == [0, 0, 1]
        assert [row.id.rpartition("/")[2] for row in rows] == ["0", "0", "1"]
        assert len({row.id for row in rows}) == 3
        assert rows[1].id.rpartition("/")[0] == rows[2].id.rpartition("/")[0]
        assert (report.rows_in, report.rows_out, report.dropped) == (3, 3, 1)

    def test_rename_and_select(self):
        stream = Stream.from_iterable([{"a": 1, "b": 2, "c": 3}])
        assert stream.rename(a="x", b="y").to_list() == [{"x": 1, "y": 2, "c": 3}]
        assert stream.select("c", "a").to_list() == [{"c": 3, "a": 1}]

    def test_rename_swaps(self):
        assert Stream.from_iterable([{"a": 1, "b": 2}]).rename(a="b", b="a").to_list() == [{"b": 1, "a": 2}]

    def test_batch_gathers_and_gives_out_the_rest(self):
        assert numbers(5).batch(2).to_list() == [{"n": [0, 1]}, {"n": [2, 3]}, {"n": [4]}]

    def test_batch_fills_missing_fields(self):
        stream = Stream.from_iterable([{"a": 1}, {"b": 2}]).batch(2)
        assert stream.to_list() == [{"a": [1, None], "b": [None, 2]}]

    def test_a_function_that_fails_makes_a_dead_letter_and_the_others_go_on(self):
        rows, letters, report = run(numbers(5).map(lambda row: {"m": 10 // (row.n - 2)}))
        assert len(rows) == 4
        (letter,) = letters
        assert (letter["stage"], letter["step"]) == ("map", "01_map")
        assert letter["error"]["code"] == "exception"
        assert letter["error"]["type"] == "ZeroDivisionError"
        assert letter["source"]["offset"] == 2
        assert report.rows_in == report.rows_out + report.dead_letters

    @pytest.mark.parametrize(
        "build",
        [
            lambda s: s.map(lambda row: 5),
            lambda s: s.map(lambda row: row.nothing),
            lambda s: s.filter(lambda row: row.nothing),
            lambda s: s.flat_map(lambda row: 5),
            lambda s: s.flat_map(lambda row: [1]),
            lambda s: s.branch(lambda row: row.nothing)[0],
        ],
    )
    def test_so_does_every_other(self, build):
        rows, letters, _report = run(build(numbers(2)), strict=False)
        assert rows == []
        assert [letter["stage"] for letter in letters] == ["map", "map"]

    def test_a_dead_letter_passes_later_steps_untouched(self):
        stream = (
            numbers(3).map(lambda row: {"n": 1 // row.n}).map(lambda row: {"n": 0}).filter(lambda row: False)
        )
        rows, letters, report = run(stream)
        assert rows == []
        assert [letter["step"] for letter in letters] == ["01_map"]
        assert (report.dropped, report.dead_letters) == (2, 1)

    def test_the_raw_record_is_in_the_letter(self, tmp_path):
        (tmp_path / "in.jsonl").write_bytes(b'{"n":0}\n{"n": 1 }\n')
        _rows, letters, _ = run(Stream.read(tmp_path / "in.jsonl").map(lambda row: {"m": 1 // (row.n - 1)}))
        import base64

        assert base64.b64decode(letters[0]["raw"]) == b'{"n": 1 }'
        assert letters[0]["source"]["line"] == 2


class TestThrough:
    def test_adds_outputs_and_keeps_fields(self):
        rows, _, report = run(questions("a", "b").through(Predict("question -> answer")), lm=shout())
        assert sorted(row.question + row.answer for row in rows) == ["aA", "bB"]
        assert (report.rows_in, report.rows_out, report.calls, report.hits) == (2, 2, 2, 0)

    def test_a_later_step_sees_the_outputs_of_an_earlier_one(self):
        stream = (
            questions("a").through(Predict("question -> answer")).rename(answer="question", question="first")
        )
        assert stream.through(Predict("question -> answer")).to_list(lm=shout()) == [
            {"first": "a", "question": "A", "answer": "A"}
        ]

    def test_to_list_is_in_input_order_though_answers_come_out_of_order(self):
        async def slow_first(request):
            number = int(last_line(request))
            await asyncio.sleep(0.05 if number == 0 else 0)
            return {"answer": str(number)}

        texts = [str(number) for number in range(30)]
        lm = ScriptedLM(slow_first)
        made = questions(*texts).through(Predict("question -> answer")).to_list(lm=lm)
        assert [row["answer"] for row in made] == texts

    def test_ordered_emits_in_input_order(self):
        async def slow_first(request):
            number = int(last_line(request))
            await asyncio.sleep(0.03 if number % 7 == 0 else 0)
            return {"answer": str(number)}

        texts = [str(number) for number in range(30)]
        stream = questions(*texts).through(Predict("question -> answer"), order="ordered")
        rows, _, _ = run(stream, lm=ScriptedLM(slow_first))
        assert [row.answer for row in rows] == texts

    def test_ordered_keeps_the_place_of_a_failure(self):
        stream = questions("a", "b", "c").map(
            lambda row: {"question": row.question, "x": 1 // (row.question != "b")}
        )
        sink, letters = MemorySink(), MemorySink()
        stream = stream.through(Predict("question -> answer"), order="ordered")
        stream.write(sink, dead_letters=letters).run(state=None, quiet=True, lm=shout())
        assert [row.answer for row in sink.rows] == ["A", "C"]

    def test_unordered_emits_as_answers_come(self):
        async def slow_first(request):
            number = int(last_line(request))
            await asyncio.sleep(0.2 if number == 0 else 0)
            return {"answer": str(number)}

        stream = questions(*map(str, range(8))).through(Predict("question -> answer"))
        rows, _, _ = run(stream, lm=ScriptedLM(slow_first))
        assert rows[-1].answer == "0"

    def test_identical_questions_are_paid_once(self):
        lm = shout()
        rows, _, report = run(questions(*["same"] * 50).through(Predict("question -> answer")), lm=lm)
        assert len(rows) == 50
        assert lm.call_count == 1
        assert (report.calls, report.hits) == (1, 49)

    def test_the_in_flight_limit_is_never_exceeded_and_is_used(self):
        flying, most = 0, 0

        async def count(request):
            nonlocal flying, most
            flying += 1
            most = max(most, flying)
            await asyncio.sleep(0.002)
            flying -= 1
            return {"answer": "x"}

        stream = questions(*map(str, range(60))).through(Predict("question -> answer"), capacity=7)
        run(stream, lm=ScriptedLM(count))
        assert most == 7
        most = 0
        run(stream, lm=ScriptedLM(count), capacity=3)
        assert most == 3

    def test_a_module_of_ones_own(self):
        class Twice(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")

            def forward(self, question):
                first = self.ask(question=question).answer
                return {"both": [first, self.ask(question=first + "!").answer]}

        class TwiceAsync(Twice):
            async def aforward(self, question):
                first = (await self.ask.acall(question=question)).answer
                return {"both": [first, (await self.ask.acall(question=first + "!")).answer]}

        for module in (Twice(), TwiceAsync()):
            made = questions(*"abc").through(module).to_list(lm=shout())
            assert [row["both"] for row in made] == [["A", "A!"], ["B", "B!"], ["C", "C!"]]

    def test_a_result_that_is_no_prediction_is_a_dead_letter(self):
        class Wrong(Module):
            def forward(self, question):
                return 5

        _, letters, _ = run(questions("a").through(Wrong()))
        assert letters[0]["stage"] == "module"
        assert "returned int" in letters[0]["error"]["message"]

    def test_a_module_that_raises_fails_its_row_only(self):
        class Picky(Module):
            def forward(self, question):
                if question == "b":
                    raise KeyError("no b")
                return {"ok": True}

        rows, letters, _ = run(questions("a", "b", "c").through(Picky(), name="picky"))
        assert len(rows) == 2
        assert (letters[0]["stage"], letters[0]["step"]) == ("module", "01_picky")

    def test_a_row_without_a_needed_field_fails_alone(self):
        stream = Stream.from_iterable([{"question": "a"}, {"other": "b"}])
        rows, letters, _ = run(stream.through(Predict("question -> answer")), lm=shout())
        assert len(rows) == 1
        assert (letters[0]["stage"], letters[0]["error"]["code"]) == ("check", "bad_record")
        assert "needs the field 'question'; the row has: other" in letters[0]["error"]["message"]

    def test_a_row_cannot_override_the_model_or_the_demos(self):
        lm = shout()
        row = {
            "question": "a",
            "lm": "openai/gpt-4o",
            "demos": [{"question": "x", "answer": "y"}],
            "config": {"n": 9},
        }
        made = Stream.from_iterable([row]).through(Predict("question -> answer")).to_list(lm=lm)
        assert made[0]["answer"] == "A"
        assert len(lm.calls[0].messages) == 2
        assert dict(lm.calls[0].options) == {}


class TestFailures:
    def test_an_unreadable_answer_is_a_dead_letter_with_its_stage(self):
        lm = ScriptedLM(
            lambda request: "what?" if "b" in last_line(request) else {"answer": "x", "number": 1}
        )
        stream = questions("a", "b").through(Predict("question -> answer, number: int"), name="ask")
        rows, letters, _ = run(stream, lm=lm)
        assert len(rows) == 1
        assert (letters[0]["stage"], letters[0]["error"]["code"], letters[0]["attempts"]) == (
            "parse",
            "parse",
            1,
        )

    def test_a_refused_request_names_the_model(self):
        refused = LMInvalidRequestError("too rude", model="m/x", status=400, request_id="r1")
        _, letters, _ = run(questions("a").through(Predict("question -> answer")), lm=ScriptedLM([refused]))
        assert letters[0]["stage"] == "call"
        assert letters[0]["model"] == {"name": "m/x", "status": 400, "request_id": "r1"}

    def test_retries_are_counted_and_ask_for_other_answers(self):
        lm = ScriptedLM(["bad", "bad", "bad", "bad", {"number": 3}])
        stream = questions("a").through(Predict("question -> number: int"), retries=2)
        rows, _letters, _ = run(stream, lm=lm)
        assert [row.number for row in rows] == [3]
        assert len({request.key() for request in lm.calls}) == 5

    def test_when_they_are_used_up_the_letter_says_so(self):
        stream = questions("a").through(Predict("question -> number: int"), retries=2)
        _, letters, _ = run(stream, lm=ScriptedLM(lambda request: "bad"))
        assert letters[0]["attempts"] == 3

    def test_a_module_is_retried_too(self):
        tries = []

        class Third(Module):
            def forward(self, question):
                tries.append(question)
                if len(tries) < 3:
                    raise OSError("not yet")
                return {"ok": True}

        rows, _, _ = run(questions("a").through(Third(), retries=2))
        assert len(rows) == 1
        assert tries == ["a"] * 3

    def test_skip_drops_and_counts(self):
        lm = ScriptedLM(lambda request: "bad")
        stream = questions("a", "b").through(Predict("question -> number: int"), on_error="skip")
        rows, letters, report = run(stream, lm=lm)
        assert rows == letters == []
        assert report.dropped == 2

    def test_stop_ends_the_flow_with_the_error(self):
        stream = questions("a").through(Predict("question -> number: int"), on_error="stop")
        with pytest.raises(AdapterParseError):
            run(stream, lm=ScriptedLM(lambda request: "bad"))

    def test_a_wrong_key_stops_the_flow_whatever_the_rows_policy(self):
        stream = questions("a").through(Predict("question -> answer"), on_error="skip")
        with pytest.raises(LMAuthError, match="no such key"):
            run(stream, lm=ScriptedLM(lambda request: LMAuthError("no such key")))

    def test_a_row_over_its_time_is_a_dead_letter_and_the_rest_goes_on(self):
        cancelled = []

        async def answer(request):
            if "slow" in last_line(request):
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    cancelled.append(1)
                    raise
            return {"answer": "x"}

        stream = questions("a", "slow", "b").through(Predict("question -> answer"), timeout=0.1)
        rows, letters, _ = run(stream, lm=ScriptedLM(answer))
        assert len(rows) == 2
        assert letters[0]["error"]["type"] == "RowTimeout"
        assert letters[0]["error"]["code"] == "timeout"
        assert "0.1 s" in letters[0]["error"]["message"]
        assert cancelled == [1]

    def test_a_timeout_is_retried_like_any_failure_of_the_row(self):
        turns = []

        async def answer(request):
            turns.append(1)
            if len(turns) == 1:
                await asyncio.sleep(3600)
            return {"answer": "x"}

        stream = questions("a").through(Predict("question -> answer"), timeout=0.1, retries=1)
        rows, _, _ = run(stream, lm=ScriptedLM(answer))
        assert len(rows) == 1

    def test_to_list_raises_the_first_failure(self):
        with pytest.raises(RowError, match=r"row 0: .*division"):
            numbers(3).map(lambda row: {"n": 1 // row.n}).to_list()
        with pytest.raises(RowError, match="could not read the answer"):
            questions("a").through(Predict("question -> number: int")).to_list(lm=ScriptedLM("bad"))


class TestColumns:
    """A wrong column is found before any call, from the first rows."""

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([{"quesiton": "a"}], r"no column 'question'.*it has: quesiton.*Did you mean 'quesiton'\?"),
            ([{"text": "a", "label": "b"}], r"it has: text, label\. Give fields other names with \.rename"),
        ],
    )
    def test_is_named_with_the_nearest(self, rows, words):
        lm = shout()
        with pytest.raises(InputError, match=words):
            Stream.from_iterable(rows).through(Predict("question -> answer"), name="ask").to_list(lm=lm)
        assert lm.call_count == 0

    def test_the_steps_name_is_in_the_message(self):
        with pytest.raises(InputError, match="which step 01_ask needs"):
            numbers(1).through(Predict("question -> answer"), name="ask").to_list(lm=shout())

    def test_rename_and_outputs_count(self):
        stream = (
            Stream.from_iterable([{"text": "a"}])
            .rename(text="question")
            .through(Predict("question -> answer"))
        )
        assert stream.through(Predict("answer -> question")).select("question").to_list(
            lm=ScriptedLM({"": {"answer": "x", "question": "y"}})
        ) == [{"question": "y"}]

    def test_the_inputs_own_columns_are_named_after_a_rename_too(self):
        stream = Stream.from_iterable([{"txet": "a", "id": 1}]).rename(txet="text", id="number")
        with pytest.raises(
            InputError, match=r"no column 'question'.*it has: txet, id, and by the steps before"
        ):
            stream.through(Predict("question -> answer"), name="ask").to_list(lm=shout())
        with pytest.raises(InputError, match=r"Did you mean 'txet'"):
            stream.through(Predict("txeet -> answer"), name="ask").to_list(lm=shout())

    def test_a_column_that_the_input_has_and_a_step_took_away_is_told_as_that(self):
        stream = Stream.from_iterable([{"text": "a", "id": 1}]).rename(text="question")
        with pytest.raises(InputError, match=r"a step before has left it out .* there it has: question, id"):
            stream.through(Predict("text -> answer"), name="ask").to_list(lm=shout())

    def test_select_is_checked_too(self):
        with pytest.raises(InputError, match="no column 'm'"):
            numbers(1).select("m").run(state=None, quiet=True)

    def test_behind_a_function_nothing_is_known(self):
        made = (
            numbers(1)
            .map(lambda row: {"question": "a"})
            .through(Predict("question -> answer"))
            .to_list(lm=shout())
        )
        assert made == [{"question": "a", "answer": "A"}]

    def test_a_field_that_only_later_rows_lack_is_theirs_alone(self):
        stream = Stream.from_iterable([{"a": 1, "b": 2}, {"a": 1}]).select("b")
        rows, letters, _ = run(stream)
        assert len(rows) == 1
        assert "no field 'b'" in letters[0]["error"]["message"]


class TestBranch:
    def test_both_sides_into_two_sinks_of_one_flow(self):
        even, odd = numbers(10).branch(lambda row: row.n % 2 == 0)
        first, second = MemorySink(), MemorySink()
        report = (
            even.write(first)
            .also(odd.map(lambda row: {"n": -row.n}).write(second))
            .run(state=None, quiet=True)
        )
        assert [row.n for row in first.rows] == [0, 2, 4, 6, 8]
        assert [row.n for row in second.rows] == [-1, -3, -5, -7, -9]
        assert (report.rows_in, report.rows_out) == (10, 10)

    def test_the_function_is_called_once_a_row(self):
        seen = []
        even, odd = numbers(4).branch(lambda row: seen.append(row.n) or row.n % 2 == 0)
        even.write(MemorySink()).also(odd.write(MemorySink())).run(state=None, quiet=True)
        assert sorted(seen) == [0, 1, 2, 3]

    def test_one_side_alone(self):
        even, odd = numbers(4).branch(lambda row: row.n % 2 == 0)
        assert even.to_list() == [{"n": 0}, {"n": 2}]
        assert odd.to_list() == [{"n": 1}, {"n": 3}]

    def test_a_step_before_the_branch_is_run_once(self):
        lm = shout()
        asked = questions("a", "b").through(Predict("question -> answer", cache=False))
        yes, no = asked.branch(lambda row: row.answer == "A")
        first, second = MemorySink(), MemorySink()
        yes.write(first).also(no.write(second)).run(state=None, quiet=True, lm=lm)
        assert lm.call_count == 2
        assert [row.answer for row in (*first.rows, *second.rows)] == ["A", "B"]

    def test_two_flows_of_two_sources_are_refused(self):
        with pytest.raises(FlowError, match="2 sources"):
            numbers(1).write(MemorySink()).also(numbers(1).write(MemorySink()))


class TestLists:
    def test_a_list_gets_a_dict_for_each_row_and_another_the_dead_letters(self):
        found, letters = [], []
        stream = numbers(3).map(lambda row: {"n": 6 // (row.n - 1)})
        flow = stream.write(found, dead_letters=letters)
        report = flow.run(state=None, quiet=True)
        assert (report.rows_out, report.dead_letters) == (2, 1)
        assert [{**row, "row_id": type(row["row_id"])} for row in found] == [
            {"row_id": str, "n": -6},
            {"row_id": str, "n": 6},
        ]
        assert letters[0]["error"]["type"] == "ZeroDivisionError"
        with pytest.raises(ConfigurationError, match="the list to write to holds something"):
            flow.run(state=None, quiet=True)

    def test_its_columns_and_its_end_in_another_process(self, tmp_path):
        found = []
        flow = numbers(3).write(found, columns=["n"], row_id=None)
        flow.run(state=tmp_path / "state", quiet=True)
        assert found == [{"n": 0}, {"n": 1}, {"n": 2}]

    @pytest.mark.parametrize("given", [(), {}, 7, print, MemorySink])
    def test_what_nothing_can_be_written_to_is_refused_at_once(self, given):
        with pytest.raises(FlowError, match=r"write\(\) takes a file, '-', a list or a Sink, not"):
            numbers(1).write(given)
        with pytest.raises(FlowError, match="dead_letters takes a file"):
            numbers(1).write(MemorySink(), dead_letters=given)

    def test_one_list_for_both_and_a_format_are_refused(self):
        found = []
        with pytest.raises(FlowError, match="to one list"):
            numbers(1).write(found, dead_letters=found)
        with pytest.raises(ConfigurationError, match="a list gets dicts"):
            numbers(1).write(found, format="csv")


class TestReport:
    def test_measures_are_means_over_rows_that_have_a_value(self):
        stream = numbers(10).measure(
            even=lambda row: row.n % 2 == 0,
            small=lambda row: row.n if row.n < 3 else None,
            never=lambda row: None,
        )
        _, _, report = run(stream)
        assert report.measures == {"even": 0.5, "small": 1.0}

    def test_limit_reads_no_more(self):
        rows, _, report = run(numbers(1000), limit=7)
        assert [row.n for row in rows] == list(range(7))
        assert report.rows_in == 7
        assert run(numbers(3), limit=0)[2].rows_in == 0

    def test_every_row_is_in_one_of_the_totals(self):
        lm = ScriptedLM(
            lambda request: "bad" if last_line(request).endswith("7") else {"answer": "x", "number": 1}
        )
        stream = (
            Stream.from_iterable([{"question": str(n)} for n in range(200)])
            .filter(lambda row: not row.question.endswith("3"))
            .map(lambda row: {"question": row.question, "x": 1 // (not row.question.endswith("5"))})
            .through(Predict("question -> answer, number: int"))
        ).limit_failures(consecutive=None, ratio=None)
        _, _, report = run(stream, lm=lm)
        assert (report.rows_in, report.dropped, report.dead_letters, report.rows_out) == (200, 20, 40, 140)

    def test_is_json(self):
        _, _, report = run(numbers(2).measure(a=lambda row: 1))
        value = orjson.loads(orjson.dumps(report.to_json()))
        assert (value["status"], value["rows_out"], value["measures"]) == ("finished", 2, {"a": 1.0})

    def test_tokens_and_cost_are_counted_without_a_state_folder_too(self):
        _, _, report = run(questions("a", "b", "a").through(Predict("question -> answer")), lm=LocalLM())
        assert report.calls == 2
        assert report.prompt_tokens > 0
        assert report.completion_tokens > 0
        assert report.cost == 0.0


class TestModels:
    def test_run_goes_before_the_settings_and_they_before_using(self):
        from dspy_stream.configuration import context

        def named(name):
            return ScriptedLM({"": {"answer": name}})

        stream = questions("a").through(Predict("question -> answer")).using(lm=named("using"))
        assert stream.to_list()[0]["answer"] == "using"
        with context(lm=named("settings")):
            assert stream.to_list()[0]["answer"] == "settings"
            assert stream.to_list(lm=named("run"))[0]["answer"] == "run"

    def test_without_any_nothing_is_read(self):
        from dspy_stream.errors import LMNotConfiguredError

        with pytest.raises(LMNotConfiguredError, match="local/nearest"):
            questions("a").through(Predict("question -> answer")).to_list()

    def test_the_adapter_of_a_run(self):
        from dspy_stream.adapters import JSONAdapter

        lm = ScriptedLM({"": {"answer": "x"}}, answers_as="json")
        stream = questions("a").through(Predict("question -> answer")).using(adapter=JSONAdapter())
        assert stream.to_list(lm=lm)[0]["answer"] == "x"


@pytest.mark.parametrize(
    ("option", "known"),
    [("on_error", "default, dead_letter, skip, stop"), ("order", "unordered, ordered")],
)
def test_a_choice_that_there_is_not_is_named_alone_with_those_that_there_are(option, known):
    with pytest.raises(FlowError, match=f"^{option}='ignore': no such choice; there are .*") as caught:
        Stream.from_iterable([]).through(Predict("a -> b"), **{option: "ignore"})
    assert sorted(str(caught.value).split("there are ")[1].split(", ")) == sorted(known.split(", "))
    with pytest.raises(ConfigurationError, match=f"^{option}='ignore': no such choice; there are "):
        Predict("a -> b").using(**{option: "ignore"})


class Silent(Module):
    """One that has parts and nothing to do with them."""

    def __init__(self):
        self.answer = Predict("text -> answer")


class Alone(Silent):
    """One that wants an event loop of its own."""

    def forward(self, text):
        later = self.answer.acall(text=text)
        try:
            return asyncio.run(later)
        finally:
            later.close()


def test_a_module_without_a_program_is_no_step():
    with pytest.raises(FlowError, match="Silent is no step: it defines neither forward nor aforward"):
        Stream.from_iterable([{"text": "a"}]).through(Silent())
    patched = Silent()
    patched.forward = lambda text: Prediction(answer=text)
    found = Stream.from_iterable([{"text": "a"}]).through(patched).to_list(lm=ScriptedLM([]))
    assert found[0]["answer"] == "a"


def test_a_forward_that_runs_a_loop_is_told_what_to_do():
    lm = ScriptedLM({"": {"answer": "x"}})
    rows = Stream.from_iterable([{"text": "a"}])
    with pytest.raises(RowError, match=r"running event loop; a step's forward .*isolation='thread'"):
        rows.through(Alone()).to_list(lm=lm)
    assert rows.through(Alone(), isolation="thread").to_list(lm=lm)[0]["answer"] == "x"
