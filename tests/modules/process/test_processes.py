"""Parts in worker processes, called and in flows: real processes that really end."""

import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.errors import (
    BudgetExceeded,
    ConfigurationError,
    LMConfigurationError,
    LMServerError,
    OutputError,
    RowError,
    RowTimeout,
)
from dspy_stream.lm.cache import DictJournal
from dspy_stream.modules import hosts
from dspy_stream.modules.opening import OpenTimeout
from dspy_stream.modules.process.host import WorkerDied
from dspy_stream.modules.process.told import PartError
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded
from dspy_stream.runtime import run as on_loop
from dspy_stream.stream.sinks import MemorySink
from tests.modules.process import programs
from tests.modules.process.programs import (
    HERE,
    Asks,
    AtOnce,
    BreaksInside,
    Checked,
    DiesOpening,
    Forgives,
    Holds,
    Judges,
    Mute,
    Needs,
    NeverMade,
    NeverOpen,
    Private,
    Says,
    Skips,
    Stops,
    Times,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    ds.configure(journal=DictJournal())
    yield tmp_path
    ds.configure(journal=None, lm=None)
    for found in hosts._process:  # the workers of calls outside flows would live to the end of the tests
        on_loop(found.aclose())
    hosts._process.clear()


@pytest.fixture
def deaths():
    heard = []
    stop = events.subscribe(heard.append, kinds=["part"])
    yield heard
    stop()


def run(stream, **options):
    rows, letters = MemorySink(), MemorySink()
    stream = stream.limit_failures(consecutive=None, ratio=None)
    report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True, **options)
    assert report.rows_in == report.rows_out + report.dead_letters + report.dropped
    return (
        sorted((dict(row.fields) for row in rows.rows), key=lambda row: row.get("n", 0)),
        letters.rows,
        report,
    )


def in_process(module, **options):
    return ds.Program(part=module.using(isolation="process", **{"workers": 1, **options}))


def gone(pid):
    """True for a process that has ended, whether or not anybody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


ROWS = [{"n": n} for n in range(12)]


class TestFlow:
    def with_bad(self, **do):
        return [{"n": n, **({"do": do[f"n{n}"]} if f"n{n}" in do else {})} for n in range(12)]

    def test_rows_go_through_and_nothing_of_the_parent_s_is_there(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-of-the-parent")
        rows, letters, report = run(ds.Stream.from_iterable(ROWS).through(Says(), isolation="process"))
        assert [row["m"] for row in rows] == [2 * n for n in range(12)]
        assert letters == []
        assert {row["key"] for row in rows} == {"none"}
        assert os.getpid() not in {row["pid"] for row in rows}
        assert 1 <= len({row["pid"] for row in rows}) <= 2
        assert report.to_json()["worker_deaths"] == 0

    @pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")
    def test_workers_are_scheduled_as_the_parent_and_not_as_its_loop(self):
        rows, _, _ = run(
            ds.Stream.from_iterable([{"n": 0, "do": "scheduled"}]).through(Says(), isolation="process")
        )
        assert [row["m"] for row in rows] == [os.sched_getscheduler(0)]

    @pytest.mark.parametrize(
        ("do", "how"),
        [
            ("exit", "exit code 3"),
            ("kill", "killed by SIGKILL"),
        ],
    )
    def test_a_row_that_ends_its_process_is_one_dead_letter(self, do, how, deaths):
        stream = ds.Stream.from_iterable(self.with_bad(n5=do)).through(Says(), isolation="process", workers=1)
        rows, (letter,), report = run(stream)
        assert [row["n"] for row in rows] == [n for n in range(12) if n != 5]
        assert (letter.stage, letter.error["code"]) == ("process", "worker_died")
        assert how in letter.error["message"]
        assert len(deaths) == 2 == report.worker_deaths
        assert {event.reason for event in deaths} == {event.reason for event in deaths if how in event.reason}
        assert {event.row for event in deaths} == {letter.row_id}

    def test_a_row_whose_worker_died_of_something_else_passes_in_a_fresh_one(self):
        rows, letters, report = run(
            ds.Stream.from_iterable(self.with_bad(n2="first", n7="first")).through(
                Says(), isolation="process"
            )
        )
        assert (len(rows), letters, report.worker_deaths) == (12, [], 2)

    def test_a_stop_of_all_processes_is_left_to_the_parent_but_not_by_what_the_code_starts(self):
        rows = self.with_bad(n2="stop", n7="stop what it starts")
        made, letters, report = run(ds.Stream.from_iterable(rows).through(Says(), isolation="process"))
        assert (len(made), letters, report.worker_deaths) == (12, [], 0)
        assert made[7]["ends"] == [signal.SIGTERM, -signal.SIGTERM]

    def test_an_exception_with_a_constructor_of_its_own_is_the_same_in_the_dead_letter_as_inline(self):
        errors = []
        for options in ({}, {"isolation": "process", "workers": 1}):
            _, (letter,), _ = run(ds.Stream.from_iterable([{"n": 4, "do": "odd"}]).through(Says(), **options))
            errors.append(letter.error)
        assert errors[0] == errors[1]
        assert (errors[1]["code"], errors[1]["type"], errors[1]["message"]) == ("exception", "Odd", "row 4")
        assert re.match(r"programs\.py, line \d+, in forward", errors[1]["where"])

    def test_a_row_past_its_time_has_its_worker_killed(self):
        stream = ds.Stream.from_iterable(self.with_bad(n3="hold"))
        rows, (letter,), _ = run(stream.through(Says(), isolation="process", workers=1, timeout=0.7))
        assert len(rows) == 11
        assert letter.error["code"] == "timeout"

    def test_failures_are_the_row_s_and_say_where(self):
        stream = ds.Stream.from_iterable(self.with_bad(n1="raise", n2="own"))
        rows, letters, report = run(stream.through(Says(), isolation="process", workers=1))
        assert (len(rows), report.worker_deaths) == (10, 0)
        first, second = sorted(letters, key=lambda letter: letter.error["type"])
        assert (first.stage, first.error["type"], first.error["message"]) == ("module", "KeyError", "1")
        assert re.fullmatch(r"programs\.py, line \d+, in forward", first.error["where"])
        assert (second.error["type"], second.error["message"]) == ("Own", "row 2")

    def test_what_cannot_be_sent_fails_its_row(self):
        deep = []
        for _ in range(500):
            deep = [deep]
        with pytest.raises(RowError, match=r"cannot be sent to a worker process: .* nested beyond"):
            in_process(Says())(n=deep)
        assert in_process(Says())(n=1 << 70).m == 1 << 71
        thrice = in_process(Needs(3), factory=programs.three_times)
        assert thrice(n=10**5000).m == 3 * 10**5000

    def test_all_workers_are_gone_when_the_flow_is_through(self):
        rows, _, _ = run(ds.Stream.from_iterable(ROWS).through(Says(), isolation="process"))
        assert all(map(gone, {row["pid"] for row in rows}))

    def test_a_dry_run_starts_no_process_and_says_so(self):
        flow = ds.Stream.from_iterable(ROWS).through(Says(), isolation="process").compile()
        (note,) = flow.dry_run(state=None).notes
        assert "runs in worker processes, which a dry run does not start" in note

    def test_a_part_of_a_program_and_a_function_and_a_factory(self):
        program = ds.Program(
            a=Needs(3).using(
                isolation="process", workers=1, factory=programs.three_times, outputs={"m": "n"}
            ),
            b=ds.modules.part.as_part(programs.double).using(isolation="process", workers=1),
        )
        rows, _, _ = run(ds.Stream.from_iterable(ROWS[:3]).through(program))
        assert [row["m"] for row in rows] == [0, 6, 12]
        assert [program(n=n).m for n in range(3)] == [0, 6, 12]
        said = ds.Stream.from_iterable(ROWS).through(program).compile().explain()
        assert said.count("in processes") == 2


class Answers:
    """Counts what a model is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, request):
        self.asked.append(request.tail[-1].content)
        if "down" in self.asked[-1]:
            raise LMServerError("out of order", status=503)
        return {"answer": ["yes"], "b": "b", "c": "c"}


class TestModels:
    def test_questions_are_put_by_the_parent_and_outputs_have_their_types(self):
        answers = Answers()
        lm = ds.ScriptedLM(answers, cache=True)
        rows = [{"n": n, "question": f"q{n % 2}"} for n in range(6)]
        made, _, report = run(
            ds.Stream.from_iterable(rows).through(Asks(), isolation="process", workers=1), lm=lm
        )
        assert [row["answer"] for row in made] == [["yes"]] * 6
        assert len(answers.asked) == 2
        assert (report.calls, report.hits) == (2, 4)

    def test_a_row_that_is_tried_again_does_not_pay_again(self):
        answers = Answers()
        rows = [{"n": 0, "question": "q", "die": True}]
        made, letters, report = run(
            ds.Stream.from_iterable(rows).through(Asks(), isolation="process", workers=1),
            lm=ds.ScriptedLM(answers, cache=True),
        )
        assert (len(made), letters, report.worker_deaths) == (1, [], 1)
        assert len(answers.asked) == 1

    def test_it_asks_what_an_inline_part_would_ask(self):
        program = Asks()
        program.ask.demos = [{"question": "before?", "answer": ["no"]}]
        program.ask.config = {"temperature": 0.3}
        program.ask.signature = program.ask.signature.with_instructions("Say yes or no.")
        seen = []

        def answer(request):
            seen.append((request.key(), [m.to_json() for m in request.messages], dict(request.options)))
            return {"answer": ["yes"]}

        for options in ({}, {"isolation": "process", "workers": 1}, {"isolation": "thread"}):
            stream = ds.Stream.from_iterable([{"question": "q"}]).through(program, **options)
            assert stream.to_list(lm=ds.ScriptedLM(answer, cache=True))[0]["answer"] == ["yes"]
        assert seen[0] == seen[1] == seen[2]

    def test_a_signature_that_was_changed_here_is_refused(self):
        program = Asks()
        hosted = in_process(program)
        with ds.context(lm=ds.ScriptedLM(Answers(), cache=True)):
            assert hosted(question="q").answer == ["yes"]
            program.ask.signature = program.ask.signature.append("why", ds.OutputField(), str)
            with pytest.raises(ConfigurationError, match="predictor 'ask' has another signature"):
                hosted(question="q")

    def test_calls_at_the_same_time_are_made_at_the_same_time(self):
        begun = []

        async def answer(request):
            import asyncio

            begun.append(request)
            while len(begun) < 2:
                await asyncio.sleep(0.001)
            return {"b": "1", "c": "2"}

        stream = ds.Stream.from_iterable([{"a": "x"}]).through(AtOnce(), isolation="process", timeout=20.0)
        (row,) = stream.to_list(lm=ds.ScriptedLM(answer, cache=True))
        assert (row["b"], row["c"]) == ("1", "2")

    def test_a_failed_call_is_the_one_that_the_code_may_catch(self):
        program = in_process(Forgives())
        with ds.context(lm=ds.ScriptedLM(Answers(), cache=True)):
            assert program(question="down").answer == "LMServerError 503"

    def test_a_failed_call_that_nobody_catches_is_the_very_error(self):
        lm = ds.ScriptedLM(Answers(), cache=True)
        with ds.context(lm=lm), pytest.raises(LMServerError, match="out of order"):
            in_process(Asks())(question="down")

    def test_a_model_of_the_code_s_own_is_refused(self):
        with pytest.raises(LMConfigurationError, match="a worker process made for itself"):
            in_process(Private())(question="q")

    def test_an_adapter_that_cannot_be_made_there_is_refused(self):
        class Mine(ds.ChatAdapter):
            pass

        with (
            ds.context(lm=ds.ScriptedLM([]), adapter=Mine()),
            pytest.raises(ConfigurationError, match="Mine"),
        ):
            in_process(Asks())(question="q")

    def test_the_budget_holds(self):
        rows = [{"question": f"q{n}"} for n in range(5)]
        stream = ds.Stream.from_iterable(rows).through(Asks(), isolation="process", workers=1, capacity=1)
        with pytest.raises(ds.BudgetExceeded):
            stream.run(state=None, quiet=True, lm=ds.ScriptedLM(Answers(), cache=True), max_calls=2)


class TestCalled:
    def test_workers_stay_from_call_to_call(self):
        program = in_process(Says())
        assert len({program(n=n).pid for n in range(3)}) == 1

    def test_a_row_that_ends_its_process_raises_and_the_next_one_passes(self):
        program = in_process(Says())
        with pytest.raises(WorkerDied, match="exit code 3"):
            program(n=1, do="exit")
        assert program(n=1).m == 2

    def test_its_time_is_bounded(self):
        program = in_process(Says(), timeout=0.7)
        program(n=1)
        with pytest.raises(RowTimeout):
            program(n=1, do="hang")
        assert program(n=1).m == 2

    def test_a_worker_that_was_killed_while_it_was_idle_costs_nothing(self):
        program = in_process(Says())
        pid = program(n=1).pid
        os.kill(pid, signal.SIGKILL)
        while not gone(pid):
            time.sleep(0.001)
        assert program(n=1).pid != pid

    def test_a_class_of_the_user_s_own(self):
        with pytest.raises(PartError, match=r"programs\.Own: row 4"):
            in_process(Says())(n=4, do="own")


class TestMaking:
    @pytest.mark.parametrize(
        ("module", "factory", "message"),
        [
            (Needs(2), None, "cannot tell how Needs was made"),
            (Times(3), None, "cannot tell how Times was made"),
            (Times(factor=2).deepcopy(), None, "cannot tell how Times was made"),
            (Times(2, 3), None, "cannot tell how Times was made"),
            (Says(), lambda: Says(), "no name at the top of a file"),
            (
                ds.Predict(programs.Typed),
                None,
                r"cannot tell how Predict was made \(.*give isolation='process' a",
            ),
            (Says(), "nowhere.py:make", "no such file"),
            (Says(), "just_a_name", "is not 'package.module:name'"),
        ],
    )
    def test_what_no_worker_could_make_is_refused_before_any_row(self, module, factory, message):
        with pytest.raises(ConfigurationError, match=message):
            in_process(module, factory=factory)
        with pytest.raises(ConfigurationError, match=message):
            ds.Stream.from_iterable([]).through(module, isolation="process", factory=factory)

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            (programs.no_module, "what a factory makes is a module"),
            (programs.raises, "ValueError: no database here .programs.py, line"),
            (programs.exits, "end while they start .exit code 9"),
            (programs.other_program, "made another program: its predictors are ask, and here none"),
            (f"{HERE}:missing", "has no 'missing'"),
            ("no_such_package.at_all:x", "there is no module"),
        ],
    )
    def test_what_goes_wrong_there_stops_the_flow_and_is_said(self, factory, message):
        stream = ds.Stream.from_iterable([{"n": 1}]).through(Says(), isolation="process", factory=factory)
        with pytest.raises(ConfigurationError, match=message):
            run(stream)

    @pytest.mark.parametrize("made", [Times(), Times().deepcopy(), Times(callbacks=[])])
    def test_a_class_whose_arguments_have_defaults_needs_no_factory(self, made):
        assert in_process(made)(n=2).m == 4

    @pytest.mark.parametrize("factory", [f"{HERE}:three_times", f"{programs.__name__}:three_times"])
    def test_a_factory_by_name(self, factory):
        assert in_process(Needs(3), factory=factory)(n=2).m == 6

    def test_parts_of_the_package_with_plain_settings_need_no_factory(self):
        ask = ds.ChainOfThought("n: int -> m: int, text")
        ask.predict.demos = [{"n": 1, "reasoning": "as before", "m": 2, "text": "two"}]
        program = ds.Program(
            ask=(ask | ds.Format("{text}!", output="said")).using(isolation="process", workers=1)
        )
        ds.configure(lm="local/nearest")
        made = program(n=1)
        assert (made.m, made.said) == (2, "two!")

    def test_a_script_without_a_guard_is_told_so_in_one_line(self, folder):
        script = folder / "script.py"
        script.write_text(
            "import dspy_stream as ds\n"
            "class Twice(ds.Module):\n"
            "    def forward(self, n): return {'m': n * 2}\n"
            "flow = ds.Stream.from_iterable([{'n': 1}]).through(Twice(), isolation='process').to_list()\n"
        )
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)
        *trace, last = done.stderr.splitlines()
        assert 'put what starts the flow under `if __name__ == "__main__":`' in last
        assert sum(line.startswith("Traceback") for line in trace) == 1
        assert "panicked" not in done.stderr

    def test_what_has_no_form_is_a_dead_letter_and_no_text_of_an_address(self):
        rows, (letter,), _ = run(
            ds.Stream.from_iterable([{"n": 1, "do": "address"}]).through(
                Says(), isolation="process", workers=1
            )
        )
        assert rows == []
        assert (
            "the field 'thing' cannot be sent from a worker process: a object has no JSON form"
            in (letter.error["message"])
        )

    def test_a_factory_is_for_processes(self):
        with pytest.raises(ConfigurationError, match="is for isolation='process'"):
            ds.Program(a=Needs(3).using(factory=programs.three_times))

    def test_a_batch_lane_does_not_wait_in_a_process(self):
        with pytest.raises(ConfigurationError, match="rows wait for a batch for hours"):
            ds.Stream.from_iterable([]).through(Says(), isolation="process", lane="batch")


class TestSupervised:
    def log(self, folder):
        return [line.split()[0] for line in (folder / "log").read_text().splitlines()]

    def test_each_worker_opens_and_closes_its_own(self, folder):
        rows, _, report = run(
            ds.Stream.from_iterable([{"n": n} for n in range(6)]).through(
                Holds(), isolation="process", workers=1
            )
        )
        assert (len(rows), report.restarts) == (6, 0)
        assert self.log(folder) == ["open", "close"]

    @pytest.mark.parametrize(("do", "closes"), [("gone", 2), ("die", 1)])
    def test_its_failures_start_it_again_and_no_row_is_lost(self, folder, do, closes):
        data = [{"n": n, "do": do if n == 3 else ""} for n in range(6)]
        rows, letters, report = run(
            ds.Stream.from_iterable(data).through(Holds(), isolation="process", workers=1)
        )
        assert ([row["m"] for row in rows], letters, report.restarts) == ([0, 2, 4, 6, 8, 10], [], 1)
        assert self.log(folder).count("open") == 2
        assert self.log(folder).count("close") == closes

    @pytest.mark.parametrize(("do", "opens"), [("bad", 1), ("break", 2)])
    def test_how_it_is_the_worker_s_own_module_says(self, folder, do, opens):
        data = [{"n": n, "do": do if n == 3 else ""} for n in range(6)]
        rows, letters, report = run(
            ds.Stream.from_iterable(data).through(Checked(), isolation="process", workers=1)
        )
        assert self.log(folder).count("open") == opens == 1 + report.restarts
        assert [letter.error["message"] for letter in letters] == (["row 3"] if do == "bad" else [])
        assert len(rows) == 6 - len(letters)

    def test_what_cannot_be_opened_stops_the_flow(self, folder):
        (folder / "refuse").touch()
        program = ds.Program(part=Holds().using(isolation="process"), intensity=Intensity(1, 60.0))
        with pytest.raises(RestartsExceeded, match="ConnectionRefusedError: refused"):
            run(ds.Stream.from_iterable([{"n": 1}]).through(program))
        assert self.log(folder) == ["open", "open"]

    def test_what_a_module_inside_holds_is_started_again_and_reported(self, folder):
        data = [{"n": n, "do": "gone" if n == 3 else ""} for n in range(6)]
        heard = []
        stop = events.subscribe(heard.append, kinds=["part"])
        rows, letters, report = run(
            ds.Stream.from_iterable(data).through(BreaksInside(), isolation="process", workers=1)
        )
        stop()
        assert ([row["m"] for row in rows], letters) == ([0, 2, 4, 6, 8, 10], [])
        assert (report.restarts, [part.restarts for part in report.parts]) == (1, [1])
        assert [(event.part, event.reason) for event in heard] == [("Holds", "Gone: 3")]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_a_dead_resource_inside_stops_the_flow_however_many_workers_meet_it(self, workers):
        data = [{"n": n, "do": "dead"} for n in range(24)]
        stream = ds.Stream.from_iterable(data).through(BreaksInside(), isolation="process", workers=workers)
        with pytest.raises(RestartsExceeded, match=r"Holds failed .Gone: .*started again 3 times"):
            run(stream)

    def test_an_open_that_never_returns_stops_the_flow_and_says_where_it_is(self):
        stream = ds.Stream.from_iterable([{"n": 1}]).through(NeverOpen(), isolation="process", name="search")
        with pytest.raises(OpenTimeout, match=r"the start of search's .* programs\.py, line \d+, in open\."):
            run(stream)

    @pytest.mark.parametrize(
        ("factory", "place"), [("never_makes", "; it is at programs.py"), ("holds_the_interpreter", ". Give")]
    )
    def test_a_worker_that_is_never_ready_stops_the_flow(self, factory, place, monkeypatch):
        if factory == "holds_the_interpreter":  # nothing in it can say so
            monkeypatch.setattr("dspy_stream.modules.process.host._LATE", 0.5)
        stream = ds.Stream.from_iterable([{"n": 1}])
        with pytest.raises(OpenTimeout, match=rf"did not come to an end within 0\.5 s{re.escape(place)}"):
            run(stream.through(NeverMade(), isolation="process", factory=getattr(programs, factory)))

    @pytest.mark.parametrize("isolation", ["inline", "thread", "process"])
    @pytest.mark.parametrize("whole", [True, False])
    def test_dead_letters_name_the_predictor_wherever_it_was_asked(self, isolation, whole):
        lm = ds.ScriptedLM(lambda request: {"word": "x", "reasoning": "", "right": "perhaps"})
        rows = ds.Stream.from_iterable([{"n": 1}])
        if whole:
            stream, name = rows.through(Judges(), isolation=isolation), "judge.predict"
        else:
            program = ds.Program(says=Judges().using(isolation=isolation), ends=ds.Format("{right}"))
            stream, name = rows.through(program, split=False), "says.judge.predict"
        _, (letter,), _ = run(stream, lm=lm)
        assert (letter.stage, letter.error["predictor"]) == ("parse", name)

    def test_an_open_that_ends_its_process_stops_the_flow(self, folder):
        stream = ds.Stream.from_iterable([{"n": 1}]).through(DiesOpening(), isolation="process")
        with pytest.raises(ConfigurationError, match=r"worker processes end while they start .exit code 9"):
            run(stream)
        assert (folder / "opened").read_text() == "xxx"

    def test_a_part_that_neither_says_how_it_is_nor_closes_holds_nothing_up(self, caplog):
        stream = ds.Stream.from_iterable([{"n": 1}, {"n": 2}]).through(
            Mute(), isolation="process", name="mute"
        )
        assert sorted(row["m"] for row in run(stream)[0]) == [2, 4]
        assert "mute does not say within 0.5 s how it is; it is at programs.py, line" in caplog.text
        assert "did not give back what it holds within 0.5 s, and was ended" in caplog.text

    def test_a_dead_letter_names_the_predictor_that_failed_in_a_worker(self):
        program = ds.Program(part=Asks().using(isolation="process", workers=1), last=lambda answer: {})
        lm = ds.ScriptedLM(lambda request: "nothing to be read")
        for module, named in ((Asks(), "ask"), (program, "part.ask")):
            stream = ds.Stream.from_iterable([{"question": "q"}])
            _, letters, _ = run(
                stream.through(module, split=False, **{} if module is program else {"isolation": "process"}),
                lm=lm,
            )
            assert [letter["error"]["predictor"] for letter in letters] == [named]

    def test_what_a_part_inside_a_worker_chooses_for_its_failures_counts(self):
        stream = ds.Stream.from_iterable([{"n": 1}, {"n": 2}])
        rows, letters, report = run(stream.through(Skips(), isolation="process", workers=1, split=False))
        assert (rows, letters, report.dropped) == ([{"n": 2, "m": 4}], [], 1)

    @pytest.mark.parametrize(("n", "error"), [(0, BudgetExceeded), (1, OutputError)])
    def test_what_concerns_the_flow_stops_it_from_a_worker_too(self, n, error):
        stream = ds.Stream.from_iterable([{"n": n}]).through(Stops(), isolation="process")
        with pytest.raises(error, match=f"row {n}"):
            run(stream)


SCRIPT = textwrap.dedent(
    """
    import os, sys, time
    import dspy_stream as ds

    class Sleeps(ds.Module):
        def forward(self, n):
            print("worker", os.getpid(), file=sys.stderr, flush=True)
            if n == 1:
                import ctypes
                ctypes.PyDLL(None).sleep(600)  # holds the interpreter: nothing in Python could end it
            time.sleep(600)

    if __name__ == "__main__":
        stream = ds.Stream.from_iterable([{"n": 0}, {"n": 1}])
        stream.through(Sleeps(), isolation="process").run(state=None, quiet=True)
    """
)


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        workers = [os.pidfd_open(int(process.stderr.readline().split()[1])) for _ in range(2)]
        process.kill()
        process.wait()
    for worker in workers:  # readable once it has ended; its files are closed a moment earlier
        with os.fdopen(worker, "rb", buffering=0) as ended:
            assert select.select([ended], [], [], 60.0)[0], "a worker still runs"


@pytest.mark.parametrize("do", ["", "exit"])
def test_a_script_ends_quietly(tmp_path, do):
    (tmp_path / "script.py").write_text(
        "import dspy_stream as ds\nfrom tests.modules.process.programs import Says\n\n"
        "if __name__ == '__main__':\n"
        "    program = ds.Program(part=Says().using(isolation='process'))\n"
        "    try:\n"
        f"        print(program(n=1, do={do!r}).m)\n"
        "    except Exception:\n"
        "        print('no')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[3]), "TEST_FOLDER": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() in ("2", "no")
    assert made.stderr.replace("row 1 is printed\n", "") == ""


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = SCRIPT.replace('if __name__ == "__main__":', "if True:").replace("time.sleep(600)", "pass")
    (tmp_path / "script.py").write_text(script)
    made = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode != 0
    assert 'put what starts the flow under `if __name__ == "__main__":`' in made.stderr
