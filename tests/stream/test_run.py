"""Running flows with a state folder: resuming, stopping, refusing, reporting."""

import os
import threading
from base64 import b64decode

import orjson
import pytest

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import (
    ConfigurationError,
    FlowError,
    InputError,
    LMAuthError,
    OutputError,
    ProgramChanged,
    SourceChanged,
    TooManyFailures,
)
from dspy_stream.lm import LM, LocalLM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.rows import Origin, Row
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.runs import Runs
from dspy_stream.state.store import Store
from dspy_stream.stream import Stream
from dspy_stream.stream.run import RunOptions, exit_code


def asked(request):
    return request.tail[0].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]


def shout(**options):
    options.setdefault("cache", True)
    return ScriptedLM(lambda request: {"answer": asked(request).upper()}, **options)


class Here:
    """A folder with an input of questions, and the flow over it."""

    def __init__(self, path, count=40):
        self.path = path
        self.state = path / "state"
        self.out = path / "out.jsonl"
        self.input = path / "in.jsonl"
        self.input.write_bytes(b"".join(b'{"question":"q%d"}\n' % number for number in range(count)))

    def stream(self, program=None, **options):
        program = program or Predict("question -> answer")
        return Stream.read(self.input, name="qa").through(program, name="ask", **options)

    def run(self, stream=None, **options):
        flow = (stream if stream is not None else self.stream()).write(self.out)
        return flow.run(**{"state": self.state, "quiet": True, **options})

    def rows(self):
        return [orjson.loads(line) for line in self.out.read_bytes().splitlines()]

    def questions(self):
        return sorted((row["question"] for row in self.rows()), key=lambda text: int(text[1:]))

    def runs(self):
        with Store.open(self.state, read_only=True) as store:
            return Runs(store).list("qa")


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


def failing_at(call, error=None):
    """Answers until the given call, then the key is refused."""
    count = []

    def answer(request):
        count.append(1)
        if len(count) >= call:
            return error or LMAuthError("the key was revoked")
        return {"answer": asked(request).upper()}

    return ScriptedLM(answer, cache=True)


class TestOpening:
    """What cannot be opened again is told in our words alone."""

    @pytest.mark.parametrize(
        ("changed", "error", "what"),
        [
            ("input", SourceChanged, "was replaced or rewritten after the run had begun"),
            ("out", OutputError, "rows are missing from it"),
        ],
    )
    def test_a_file_that_was_replaced_before_a_resume(self, here, capfd, monkeypatch, changed, error, what):
        def die(self, run, totals=None):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(Runs, "finish", die)
            here.run(lm=shout())
        assert here.out.stat().st_size > 0
        file = getattr(here, changed)
        file.write_bytes(file.read_bytes().replace(b"q1", b"z1") if changed == "input" else b"")
        before = here.out.read_bytes()
        with pytest.raises(error, match=what):
            here.run(lm=shout())
        assert capfd.readouterr().err == ""
        assert here.out.read_bytes() == before


class TestFinishing:
    def test_writes_every_row_once_with_its_id(self, here):
        report = here.run(lm=shout())
        assert (report.status, report.rows_in, report.rows_out) == ("finished", 40, 40)
        assert exit_code(report) == 0
        assert report.outputs == (str(here.out),)
        assert here.questions() == [f"q{number}" for number in range(40)]
        assert all(row["answer"] == row["question"].upper() for row in here.rows())
        assert len({row["row_id"] for row in here.rows()}) == 40

    def test_again_is_answered_by_the_journal_alone(self, here):
        lm = shout()
        here.run(lm=lm)
        first = sorted(here.out.read_bytes().splitlines())
        report = here.run(lm=lm)
        assert (report.calls, report.hits, report.resumed) == (0, 40, False)
        assert lm.call_count == 40
        assert sorted(here.out.read_bytes().splitlines()) == first

    def test_cost_and_tokens_are_those_paid(self, here):
        first = here.run(lm=LocalLM())
        assert first.prompt_tokens > 0
        assert first.cost == 0.0
        assert here.run(lm=LocalLM()).prompt_tokens == 0

    def test_answers_that_must_not_be_shared_are_forgotten_after_the_run(self, here):
        lm = shout()
        stream = here.stream(Predict("question -> answer", cache=False))
        here.run(stream, lm=lm)
        here.run(stream, lm=lm)
        assert lm.call_count == 80

    def test_the_default_folder_is_named_after_the_flow(self, here, monkeypatch):
        monkeypatch.chdir(here.path)
        here.stream().write("o.jsonl").run(lm=shout(), quiet=True)
        assert (here.path / ".dspy_stream" / "qa").is_dir()

    def test_an_empty_input_finishes_with_nothing(self, tmp_path):
        here = Here(tmp_path, count=0)
        report = here.run(lm=shout())
        assert (report.rows_in, report.rows_out) == (0, 0)
        assert here.rows() == []

    def test_an_emptied_input_leaves_no_old_rows_in_the_output(self, here):
        here.run(lm=shout())
        here.input.write_bytes(b"")
        assert here.run(lm=shout()).rows_out == 0
        assert here.rows() == []

    def test_a_run_that_ended_before_it_could_say_so_keeps_its_rows(self, here, monkeypatch):
        def die(self, run, totals=None):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(Runs, "finish", die)
            here.run(lm=shout())
        report = here.run(lm=shout())
        assert (report.resumed, report.rows_out) == (True, 40)
        assert here.questions() == [f"q{number}" for number in range(40)]

    def test_on_two_workers(self, here):
        report = here.run(lm=shout(), workers=2)
        assert report.rows_out == 40
        assert here.questions() == [f"q{number}" for number in range(40)]


class TestResuming:
    def test_after_a_failure_only_the_missing_calls_are_paid(self, here):
        with pytest.raises(LMAuthError, match="revoked"):
            here.run(lm=failing_at(20), capacity=4)
        assert [run.status for run in here.runs()] == ["failed"]
        lm = shout()
        report = here.run(lm=lm)
        assert report.resumed
        assert report.rows_out == report.rows_in == 40
        assert here.questions() == [f"q{number}" for number in range(40)]
        assert lm.call_count == 40 - 19
        assert report.calls == 40, "all that the run has paid, before and after"
        assert [run.status for run in here.runs()] == ["finished"]

    def test_private_answers_survive_a_failure(self, here):
        stream = here.stream(Predict("question -> answer", cache=False))
        with pytest.raises(LMAuthError):
            here.run(stream, lm=failing_at(20), capacity=4)
        lm = shout()
        here.run(stream, lm=lm)
        assert lm.call_count == 40 - 19

    @pytest.mark.parametrize("epoch", [0.0, 60.0])
    def test_wherever_the_last_commit_was(self, here, epoch):
        for call in (5, 5, 5):
            with pytest.raises(LMAuthError):
                here.run(lm=failing_at(call), capacity=2, epoch=epoch)
        here.run(lm=shout())
        assert here.questions() == [f"q{number}" for number in range(40)]

    def test_dead_letters_and_counts_go_back_to_the_same_commit(self, here):
        calls = []

        def answer(request):
            calls.append(1)
            if len(calls) >= 30:
                return LMAuthError("revoked")
            return "bad" if int(asked(request)[1:]) % 5 == 0 else {"number": 1}

        stream = here.stream(Predict("question -> number: int")).limit_failures(consecutive=None, ratio=None)
        with pytest.raises(LMAuthError):
            here.run(stream, lm=ScriptedLM(answer), capacity=2, epoch=0.0)
        healthy = ScriptedLM(lambda request: "bad" if int(asked(request)[1:]) % 5 == 0 else {"number": 1})
        report = here.run(stream, lm=healthy)
        assert (report.rows_in, report.rows_out, report.dead_letters) == (40, 32, 8)
        assert len(here.rows()) == 32
        with Store.open(here.state, read_only=True) as store:
            assert len(DeadLetterBox(store).list(None, None)) == 8

    def test_several_steps_batches_and_branches(self, here):
        def flow():
            stream = (
                here.stream()
                .rename(answer="question", question="first")
                .through(Predict("question -> answer"), order="ordered")
            )
            return stream.batch(4)

        with pytest.raises(LMAuthError):
            here.run(flow(), lm=failing_at(50), capacity=3, epoch=0.0)
        here.run(flow(), lm=shout())
        found = [question for row in here.rows() for question in row["first"]]
        assert sorted(found, key=lambda text: int(text[1:])) == [f"q{number}" for number in range(40)]

    def test_typed_outputs_of_an_earlier_step_keep_their_type(self, here):
        class Sum(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")

            def forward(self, question, numbers):
                assert isinstance(numbers, set)
                return {"total": sum(numbers), "answer": self.ask(question=question).answer}

        script = {"numbers": [1, 2, 2], "answer": "x"}
        stream = here.stream(Predict("question -> numbers: set[int]")).through(Sum())
        calls = []

        def answer(request):
            calls.append(1)
            return LMAuthError("revoked") if len(calls) >= 50 else script

        with pytest.raises(LMAuthError):
            here.run(stream, lm=ScriptedLM(answer), capacity=3, epoch=0.0)
        report = here.run(stream, lm=ScriptedLM({"": script}))
        assert (report.rows_out, report.dead_letters) == (40, 0)
        assert {row["total"] for row in here.rows()} == {3}

    def test_a_changed_program_is_refused_until_it_is_accepted(self, here):
        with pytest.raises(LMAuthError):
            here.run(lm=failing_at(20), capacity=4)
        other = here.stream(Predict("question -> answer", temperature=0.5))
        with pytest.raises(ProgramChanged):
            here.run(other, lm=shout())
        asked_of = []
        with pytest.raises(ProgramChanged):
            here.run(other, lm=shout(), ask=lambda text: asked_of.append(text))
        with pytest.raises(ProgramChanged) as left:
            here.run(other, lm=shout(), ask=lambda _: False)
        assert "left as it is" in str(left.value)
        assert "accept-program-change" not in str(left.value), "who has just been asked knows"
        assert "changed program" in asked_of[0]
        report = here.run(other, lm=shout(), accept_program_change=True)
        assert report.resumed
        assert len(here.rows()) == 40

    def test_another_model_is_another_program(self, here):
        with pytest.raises(LMAuthError):
            here.run(lm=failing_at(20), capacity=4)
        with pytest.raises(ProgramChanged):
            here.run(lm=ScriptedLM("x", model="scripted/other"))

    @pytest.mark.parametrize("others", [JSONAdapter(), ChatAdapter(use_json_adapter_fallback=True)])
    def test_another_adapter_is_another_program(self, here, others):
        with pytest.raises(LMAuthError):
            here.run(lm=failing_at(20), capacity=4)
        with pytest.raises(ProgramChanged):
            here.run(lm=shout(), adapter=others)
        with pytest.raises(ProgramChanged), context(adapter=others):
            here.run(lm=shout())
        assert here.run(lm=shout(), adapter=ChatAdapter()).resumed, "the same one, named"

    def test_other_capacity_is_the_same_program(self, here):
        with pytest.raises(LMAuthError):
            here.run(lm=failing_at(20), capacity=4)
        assert here.run(here.stream(capacity=1, timeout=50), lm=shout()).resumed

    def test_fresh_starts_over(self, here):
        with pytest.raises(LMAuthError):
            here.run(lm=failing_at(20), capacity=4)
        report = here.run(lm=shout(), fresh=True)
        assert not report.resumed
        assert here.questions() == [f"q{number}" for number in range(40)]

    def test_a_finished_run_is_not_resumed_but_done_again(self, here):
        here.run(lm=shout())
        with here.input.open("ab") as file:
            file.write(b'{"question":"q40"}\n')
        lm = shout()
        report = here.run(lm=lm)
        assert (report.resumed, report.rows_out, lm.call_count) == (False, 41, 1)


class TestStopping:
    def stopping_at(self, call, jobs, grace=10.0):
        count = []

        def answer(request):
            count.append(1)
            if len(count) == call:
                jobs[0].stop(grace)
            return {"answer": asked(request).upper()}

        return ScriptedLM(answer)

    def test_commits_and_goes_on_later_without_paying_again(self, here):
        jobs = []
        report = here.run(
            lm=self.stopping_at(10, jobs),
            capacity=2,
            epoch=0.05,
            watch=lambda job: jobs.append(job) or (lambda: None),
        )
        assert report.status == "stopped"
        assert exit_code(report) == 143
        written = len(here.rows())
        assert 8 <= written < 40
        assert here.runs()[0].status == "stopped"
        lm = shout()
        again = here.run(lm=lm)
        assert (again.status, again.resumed, again.rows_out) == ("finished", True, 40)
        assert here.questions() == [f"q{number}" for number in range(40)]
        assert lm.call_count == 40 - written, "what was in flight at the stop was finished and kept"

    def test_calls_beyond_the_grace_are_cancelled_and_their_rows_kept(self, here):
        import asyncio

        jobs = []

        async def never(request):
            if asked(request) == "q5":
                jobs[0].stop(0.05)
                await asyncio.sleep(3600)
            return {"answer": asked(request).upper()}

        report = here.run(
            lm=ScriptedLM(never), capacity=2, epoch=0.05, watch=lambda job: jobs.append(job) or (lambda: None)
        )
        assert report.status == "stopped"
        here.run(lm=shout())
        assert here.questions() == [f"q{number}" for number in range(40)]

    def test_a_signal_stops_cleanly(self, here):
        import asyncio
        import signal

        async def answer(request):
            if asked(request) == "q5":
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.1)  # the row is held until the main thread has seen the signal
            return {"answer": "x"}

        before = signal.getsignal(signal.SIGTERM)
        report = here.run(lm=ScriptedLM(answer), capacity=2, epoch=0.05)
        assert report.status == "stopped"
        assert signal.getsignal(signal.SIGTERM) is before

    def test_in_another_thread_no_signal_handler_is_set(self, here):
        found = []
        thread = threading.Thread(target=lambda: found.append(here.run(lm=shout())))
        thread.start()
        thread.join()
        assert found[0].rows_out == 40


class TestRefusing:
    def test_an_output_that_no_run_has_written(self, here):
        here.out.write_text("precious\n")
        lm = shout()
        with pytest.raises(
            ConfigurationError,
            match=r"out\.jsonl exists and no run of this flow in its state",
        ):
            here.run(lm=lm)
        assert here.out.read_text() == "precious\n"
        assert lm.call_count == 0
        assert here.run(lm=lm, fresh=True).rows_out == 40

    def test_a_list_that_holds_something(self, here):
        kept: list[object] = ["precious"]
        flow = here.stream().write(kept)
        with pytest.raises(ConfigurationError, match=r"list.*holds something.*run\(fresh=True\)"):
            flow.run(lm=shout(), state=None, quiet=True)
        assert kept == ["precious"]
        assert flow.run(lm=shout(), state=None, quiet=True, fresh=True).rows_out == len(kept) == 40

    def test_without_state_too(self, here):
        here.out.write_text("precious\n")
        with pytest.raises(ConfigurationError, match="exists"):
            here.run(lm=shout(), state=None)
        assert here.out.read_text() == "precious\n"

    def test_a_missing_input_before_anything_is_written(self, here):
        here.input.unlink()
        lm = shout()
        with pytest.raises(InputError, match=r"in\.jsonl"):
            here.run(lm=lm)
        assert not here.out.exists()

    def test_an_output_that_cannot_be_written(self, here):
        lm = shout()
        flow = here.stream().write(here.input / "o.jsonl")
        with pytest.raises(OutputError, match=r"in\.jsonl"):
            flow.run(lm=lm, state=here.state, quiet=True)
        assert lm.call_count == 0

    def test_unknown_options_are_named_with_the_nearest(self):
        with pytest.raises(FlowError, match="did you mean 'workers'"):
            RunOptions.of({"worker": 2})

    def test_too_many_failures_in_a_row(self, here):
        stream = here.stream(Predict("question -> number: int")).limit_failures(consecutive=5)
        with pytest.raises(TooManyFailures, match="5 rows failed one after the other"):
            here.run(stream, lm=ScriptedLM("bad"))

    def test_too_large_a_part_after_the_warm_up(self, here):
        lm = ScriptedLM(lambda request: "bad" if int(asked(request)[1:]) % 2 else {"number": 1})
        stream = here.stream(Predict("question -> number: int"), order="ordered")
        with pytest.raises(TooManyFailures, match="of 40 rows failed, more than 25%"):
            here.run(stream.limit_failures(ratio=0.25, warm_up=20), lm=lm)

    def test_the_cause_mended_it_goes_on(self, here):
        stream = here.stream(Predict("question -> number: int"), retries=0).limit_failures(consecutive=5)
        with pytest.raises(TooManyFailures):
            here.run(stream, lm=ScriptedLM("bad"), capacity=1)
        report = here.run(stream.limit_failures(consecutive=None), lm=ScriptedLM({"": {"number": 1}}))
        assert report.resumed
        assert report.rows_out + report.dead_letters == 40

    def test_an_error_of_the_model_is_the_error_of_the_run(self, here):
        with pytest.raises(LMAuthError) as caught:
            here.run(lm=failing_at(1))
        assert caught.value.exit_code == 78

    def test_two_rows_of_one_id_and_other_content(self, here):
        here.input.write_bytes(
            b'{"id":"a","question":"x"}\n{"id":"a","question":"x"}\n{"id":"a","question":"y"}\n'
        )
        stream = Stream.read(here.input, name="qa", id="id").through(Predict("question -> answer"))
        lm = shout()
        report = here.run(stream, lm=lm)
        assert (report.rows_in, report.rows_out, report.dead_letters, lm.call_count) == (3, 2, 1, 1)
        with Store.open(here.state, read_only=True) as store:
            (filed,) = DeadLetterBox(store).list(None, None)
        assert filed.letter.error["code"] == "id_conflict"

    def test_two_rows_that_were_written_with_one_id(self, here):
        here.input.write_bytes(
            b'{"row_id":"a","question":"x"}\n{"question":"z"}\n{"row_id":"a","question":"x"}\n'
            b'{"row_id":"a","question":"y"}\n'
        )
        stream = Stream.read(here.input, name="qa").through(Predict("question -> answer"))
        report = here.run(stream, lm=shout())
        assert (report.rows_in, report.rows_out, report.dead_letters) == (4, 3, 1)
        with Store.open(here.state, read_only=True) as store:
            (filed,) = DeadLetterBox(store).list(None, None)
        assert filed.letter.error["code"] == "id_conflict"

    @pytest.mark.parametrize("named", [{"id": "id"}, {}])
    def test_a_run_that_keeps_nothing_knows_ids_too(self, here, named):
        column = "id" if named else "row_id"
        rows = [("1", "a"), ("2", "b"), ("1", "a"), ("1", "c")]
        here.input.write_bytes(
            b"".join(
                b'{"%b":"%b","question":"%b"}\n' % (column.encode(), name.encode(), text.encode())
                for name, text in rows
            )
        )
        lm = shout()
        dead = here.path / "dead.jsonl"
        stream = Stream.read(here.input, **named).through(Predict("question -> answer"))
        report = stream.write(here.out, dead_letters=dead).run(lm=lm, state=None, quiet=True)
        assert (report.rows_out, report.dead_letters, lm.call_count) == (3, 1, 2)
        (letter,) = [orjson.loads(line) for line in dead.read_bytes().splitlines()]
        assert letter["error"]["code"] == "id_conflict"


class TestPoison:
    def test_a_row_that_ended_the_process_three_times_is_a_dead_letter(self, here, monkeypatch):
        """What the watch remembers of dead processes is enough; the killing itself is tested elsewhere."""
        from dspy_stream.state.blackbox import BlackBox

        here.run(lm=shout())
        poison = here.rows()[7]["row_id"]
        monkeypatch.setattr(BlackBox, "attempts", lambda self, step, row_id: 3 if row_id == poison else 0)
        report = here.run(lm=shout())
        assert (report.rows_out, report.dead_letters) == (39, 1)
        with Store.open(here.state, read_only=True) as store:
            (filed,) = DeadLetterBox(store).list(None, None)
        assert (filed.letter.stage, filed.letter.error["code"]) == ("process", "poison")
        assert "died 3 times" in filed.letter.error["message"]


class TestOutputs:
    def test_a_row_that_has_no_form_in_the_output_is_a_dead_letter(self, here):
        deep = b"[" * 400 + b"]" * 400
        lines = [
            b'{"question":"q0"}',
            b'{"question":"q1","row_id":7}',
            b'{"question":"q2","x":' + deep + b"}",
        ]
        here.input.write_bytes(b"\n".join([*lines, b'{"question":"q3"}']) + b"\n")
        report = here.run(lm=shout())
        assert (report.rows_in, report.rows_out, report.dead_letters) == (4, 2, 2)
        assert here.questions() == ["q0", "q3"]
        with Store.open(here.state, read_only=True) as store:
            filed = DeadLetterBox(store).list("qa")
        assert sorted((found.letter.stage, found.letter.error["code"]) for found in filed) == [
            ("read", "bad_json"),  # nested deeper than is read
            ("write", "output"),
        ]

    @pytest.mark.parametrize("target", ["out.jsonl", "out.csv", "-"])
    @pytest.mark.parametrize("field", [{"x": "\ud800"}, {"\ud800": 1}], ids=["value", "name"])
    def test_a_lone_surrogate_ends_no_flow(self, here, capfd, target, field):
        def spoil(row):
            return {**row.fields, **(field if row.question == "q3" else {})}

        flow = here.stream().map(spoil).write(here.path / target if target != "-" else target)
        report = flow.run(lm=shout(), state=here.state, quiet=True)
        assert (report.rows_in, report.rows_out, report.dead_letters) == (40, 39, 1)
        text = capfd.readouterr().out if target == "-" else (here.path / target).read_text()
        assert len(text.splitlines()) == 39 + target.endswith("csv")
        with Store.open(here.state, read_only=True) as store:
            (filed,) = DeadLetterBox(store).list("qa")
        assert (filed.letter.stage, filed.letter.error["code"]) == ("write", "output")

    @pytest.mark.parametrize(
        "fields", [{"x": "\ud800"}, {"\ud800": 1}, {"x": 2**70}, {"x": [10**5000]}, {"x": {(1, 2): 3}}]
    )
    def test_a_row_that_has_neither_bytes_nor_a_form_can_fail(self, here, fields):
        def refuse(row):
            raise ValueError(f"no good: {list(row.fields)[-1]} \ud800")

        stream = Stream.from_iterable([{"n": 1}], name="qa").map(lambda row: {"n": 1, **fields}).map(refuse)
        letters = here.path / "dead.jsonl"
        flow = stream.write(here.out, dead_letters=letters)
        assert flow.run(state=here.state, quiet=True).dead_letters == 1
        letter = orjson.loads(letters.read_bytes())
        assert letter["error"]["message"].endswith(r"\ud800")
        assert b64decode(letter["raw"]) == b'{"n":1}', "what was read, not what was made of it"
        assert Row("r", {"n": 1, **fields}, Origin("m", "p", 0)).raw_bytes().startswith(b'{"n": 1, ')

    def test_a_key_that_the_users_code_quotes_is_masked(self, here):
        key = "sk-quoted-by-somebody-0001"

        def quote(row):
            raise ValueError(f"could not use {key}")

        lm = LM("openai/some", api_base="http://127.0.0.1:9/v1", api_key=key)
        flow = Stream.from_iterable([{"n": 1}], name="qa").map(quote).using(lm=lm)
        letters = here.path / "dead.jsonl"
        flow.write(here.out, dead_letters=letters).run(state=here.state, quiet=True)
        assert orjson.loads(letters.read_bytes())["error"]["message"] == "could not use ***"
        assert not any(key.encode() in path.read_bytes() for path in here.state.rglob("*") if path.is_file())

    def test_where_no_row_has_a_form_the_flow_stops(self, here):
        here.input.write_bytes(b"".join(b'{"question":"q%d","row_id":%d}\n' % (n, n) for n in range(400)))
        with pytest.raises(TooManyFailures):
            here.run(lm=shout())

    def test_strict_stops_at_the_first(self, here):
        here.input.write_bytes(b'{"question":"q1","row_id":7}\n')
        with pytest.raises(OutputError, match="row_id"):
            here.run(lm=shout(), strict=True)

    def test_two_outputs_are_not_one_file(self, here):
        flow = here.stream().write(here.out, dead_letters=here.path / "." / "out.jsonl")
        for state in (here.state, None):
            with pytest.raises(ConfigurationError, match="named twice"):
                flow.run(lm=shout(), state=state, quiet=True)

    def test_a_name_that_is_none_is_the_sink_s_to_refuse(self, here):
        with pytest.raises(OutputError, match="cannot write"):
            here.stream().write(here.path / "o\0.jsonl").run(lm=shout(), state=here.state, quiet=True)

    @pytest.mark.parametrize("name", ["epoch", "grace", "outage", "stuck"])
    @pytest.mark.parametrize("seconds", [-1.0, float("nan")])
    def test_times_are_seconds(self, here, name, seconds):
        with pytest.raises(FlowError, match=f"{name}=.*: must be seconds"):
            here.run(lm=shout(), **{name: seconds})


class TestAFinishedFlowIsRunAgain:
    """Its output is written anew; where another one may come of it, that is said."""

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"limit": 3}, "another input or limit"),
            ({"fresh": True}, "--fresh"),
            ({"lm": shout(model="scripted/other")}, "model"),
        ],
    )
    def test_what_is_replaced_is_said(self, here, caplog, change, why):
        run_id = here.run(lm=shout()).run_id
        here.run(**{"lm": shout(), **change})
        (said,) = caplog.messages
        assert f"the 40 rows of run {run_id} will be replaced" in said
        assert str(here.out) in said
        assert why in said

    def test_the_same_again_is_no_news(self, here, caplog):
        here.run(lm=shout())
        here.run(lm=shout())
        assert caplog.messages == []


def test_a_run_that_is_refused_before_it_begins_leaves_no_record(here, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="no API key"):
        here.run(lm="openai/gpt-4o-mini")
    with Store.open(here.state, read_only=True) as store:
        assert Runs(store).list() == ()
