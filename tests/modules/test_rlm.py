"""RLM: turns, what the model sees, SUBMIT, questions of the code, tools, fallback, rows of a flow."""

import asyncio
import json
import logging
import threading
import time
from typing import Literal

import pytest

from dspy_stream.callbacks import BaseCallback
from dspy_stream.configuration import configure, context
from dspy_stream.engine import Ticket
from dspy_stream.errors import BudgetExceeded, ConfigurationError, LMAuthError, LMServerError, SignatureError
from dspy_stream.interpreters import (
    CodeExecutionError,
    CodeInterpreterError,
    FinalOutput,
    PythonInterpreter,
    ScriptedInterpreter,
)
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import RLM, Module
from dspy_stream.modules.queries import Queries
from dspy_stream.modules.scope import TICKET
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import Tool
from dspy_stream.stream import Stream
from dspy_stream.types import Request


def turn(code, reasoning="hm"):
    return {"reasoning": reasoning, "code": code}


def scripted(*results):
    """A factory of interpreters, and those it has made."""
    made = []

    def factory():
        made.append(ScriptedInterpreter(results))
        return made[-1]

    return factory, made


def rlm(lines, results=None, signature="text, query -> answer", **options):
    factory, made = scripted(*results) if results is not None else (PythonInterpreter, [])
    module = RLM(signature, interpreter_factory=factory, **options)
    lm = ScriptedLM(list(lines))
    module.set_lm(lm)
    return module, lm, made


def prompt(lm, call=-1):
    return lm.calls[call].messages[-1].content


class TestTurns:
    def test_an_interpreter_is_started_once_after_its_tools_are_there(self):
        begun = []

        class Python(ScriptedInterpreter):
            def start(self):
                begun.append(sorted(self.tools))

        lm = ScriptedLM([turn("1"), turn("SUBMIT('x')")])
        script = ["", FinalOutput({"answer": "x"})]
        module = RLM("text -> answer", interpreter_factory=lambda: Python(script))
        module.set_lm(lm)
        assert module(text="t").answer == "x"
        assert begun == [["llm_query", "llm_query_batched"]]

    def test_code_is_run_until_it_submits(self):
        module, lm, made = rlm(
            [turn("print(len(text))", "look"), turn("SUBMIT('x')", "done")],
            ["5\n", FinalOutput({"answer": "x"})],
        )
        found = module(text="abcde", query="?")
        assert found.answer == "x"
        assert found.final_reasoning == "done"
        assert found.trajectory == [
            {"reasoning": "look", "code": "print(len(text))", "output": "5\n"},
            {"reasoning": "done", "code": "SUBMIT('x')", "output": "FINAL: {'answer': 'x'}"},
        ]
        assert [code for code, _ in made[0].calls] == ["print(len(text))", "SUBMIT('x')"]
        assert made[0].calls[0][1] == {"text": "abcde", "query": "?"}
        assert made[0].over
        assert "(no code was run so far)" in prompt(lm, 0)
        assert "=== Step 1 ===\nReasoning: look\nCode:\n```python\nprint(len(text))\n```" in prompt(lm, 1)
        assert "Output (2 characters):\n5" in prompt(lm, 1)
        assert ("1/20" in prompt(lm, 0), "2/20" in prompt(lm, 1)) == (True, True)

    def test_the_prompt_shows_how_variables_begin_and_end_and_no_more(self):
        module, lm, _ = rlm([turn("SUBMIT('x')")], [FinalOutput({"answer": "x"})])
        module(text="A" * 900 + "MIDDLE" * 1000 + "Z" * 900, query="how many?")
        shown = prompt(lm)
        assert "AAA" in shown
        assert "ZZZ" in shown
        assert "MIDDLE" not in shown
        assert "`text`" in shown
        assert "as text 7,800 characters" in shown
        assert "how many?" in shown
        assert "`llm_query(prompt)`" in lm.calls[0].messages[0].content
        assert "50 times" in lm.calls[0].messages[0].content

    def test_errors_are_shown_and_the_next_turn_may_mend_them(self):
        module, lm, _ = rlm(
            [turn("1 / 0"), turn("x ==="), turn("```json\n{}\n```"), turn("SUBMIT('x')")],
            [CodeExecutionError("ZeroDivisionError"), SyntaxError("invalid"), FinalOutput({"answer": "x"})],
        )
        found = module(text="a", query="b")
        assert [step["output"] for step in found.trajectory[:3]] == [
            "[Error] ZeroDivisionError",
            "[Error] SyntaxError: invalid",
            "[Error] Expected Python code but got ```json fence. Write Python code, not json.",
        ]
        assert "[Error] ZeroDivisionError" in prompt(lm, 1)

    def test_an_interpreter_that_cannot_go_on_ends_the_row(self):
        module, _, made = rlm([turn("x")], [CodeInterpreterError("gone")])
        with pytest.raises(CodeInterpreterError, match="gone"):
            module(text="a", query="b")
        assert made[0].over

    @pytest.mark.parametrize(
        ("result", "output"),
        [
            (None, "(nothing was printed)"),
            ("", "(nothing was printed)"),
            (["a", 1], "a\n1"),
            (7, "7"),
            (0, "0"),
        ],
    )
    def test_results_as_text(self, result, output):
        module, _, _ = rlm([turn("x"), turn("y")], [result, FinalOutput({"answer": "x"})])
        assert module(text="a", query="b").trajectory[0]["output"] == output

    def test_long_outputs_are_shortened_for_the_model_alone(self):
        module, lm, _ = rlm(
            [turn("x"), turn("y")], ["a" * 50 + "b" * 50, FinalOutput({"answer": "x"})], max_output_chars=20
        )
        found = module(text="t", query="q")
        assert len(found.trajectory[0]["output"]) == 100
        assert "a" * 10 + "\n... (80 characters left out) ...\n" + "b" * 10 in prompt(lm)

    def test_after_the_last_turn_the_outputs_are_written_from_the_others(self):
        module, lm, _ = rlm(
            [turn("one"), turn("two"), {"answer": "7"}],
            ["seen", None],
            signature="text -> answer: int",
            max_iters=2,
        )
        found = module(text="t")
        assert found.answer == 7
        assert found.final_reasoning == "Extract forced final output"
        assert len(found.trajectory) == 2
        assert "seen" in prompt(lm)
        assert lm.call_count == 3

    def test_turns_are_logged_where_it_is_wanted(self, caplog):
        module, _, _ = rlm([turn("code here")], [FinalOutput({"answer": "x"})], verbose=True)
        with caplog.at_level(logging.INFO, logger="dspy_stream"):
            module(text="t", query="q")
        assert "code here" in caplog.text


class TestSubmit:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("x", "[Error] SUBMIT was given str"),
            ({}, "[Error] Missing output fields: ['count', 'kind']. Use SUBMIT(kind, count)"),
            ({"kind": "c", "count": 1}, "[Type Error] kind: "),
            ({"kind": "a", "count": "many"}, "[Type Error] count: "),
            ({"kind": "a", "count": 11}, "[Type Error] count: "),
        ],
    )
    def test_wrong_outputs_are_for_the_next_turn_to_mend(self, given, said):
        class Sort(Signature):
            """Sort it."""

            text: str = InputField()
            kind: Literal["a", "b"] = OutputField()
            count: int = OutputField(le=10)

        good = FinalOutput({"kind": "b", "count": "2", "more": 1})
        module, _, made = rlm([turn("one"), turn("two")], [FinalOutput(given), good], signature=Sort)
        found = module(text="t")
        assert (found.kind, found.count) == ("b", 2)
        assert found.trajectory[0]["output"].startswith(said)
        assert made[0].output_fields == [{"name": "kind"}, {"name": "count", "type": "int"}]

    def test_types_come_out_of_json(self):
        class Find(Signature):
            """Find them."""

            text: str = InputField()
            names: list[str] = OutputField()
            ratio: float = OutputField()
            sure: bool = OutputField()
            word: str = OutputField()
            note: str = OutputField(default="none")

        module, _, _ = rlm(
            [turn("SUBMIT(names=('a', 'b'), ratio=1, sure=True, word='7', note='n')")], signature=Find
        )
        found = module(text="t")
        assert (found.names, found.ratio, found.sure, found.word, found.note) == (
            ["a", "b"],
            1.0,
            True,
            "7",
            "n",
        )


class TestQuestions:
    def test_the_code_asks_the_model_in_force_or_its_own(self):
        code = "a = llm_query('one?')\nSUBMIT(a + ' ' + ' '.join(llm_query_batched(['two?', 'three?'])))"
        answers = {"one?": "1", "two?": "2", "three?": "3", "repl": turn(code)}
        lm = ScriptedLM(answers)
        module = RLM("text -> answer", interpreter_factory=PythonInterpreter)
        with context(lm=lm):
            assert module(text="t").answer == "1 2 3"
        assert lm.call_count == 4
        other = ScriptedLM({"?": "own"})
        module.sub_lm = other
        with context(lm=lm):
            assert module(text="t").answer == "own own own"
        assert other.call_count == 3

    def test_so_many_and_no_more(self):
        code = (
            "print(llm_query('a?'))\n"
            "try: llm_query_batched(['b?', 'c?'])\nexcept RuntimeError as error: print(error)\n"
            "print(llm_query_batched(['d?']), llm_query_batched([]))\n"
            "llm_query('e?')"
        )
        sub = ScriptedLM("yes")
        module, _, _ = rlm([turn(code), turn("SUBMIT('x')")], max_llm_calls=2, sub_lm=sub)
        output = module(text="t", query="q").trajectory[0]["output"]
        assert "LLM call limit exceeded: 1 + 2 > 2" in output
        assert "LLM call limit exceeded: 2 + 1 > 2" in output
        assert "['yes'] []" in output
        assert sub.call_count == 2

    def test_each_call_of_the_module_begins_to_count_anew(self):
        sub = ScriptedLM("yes")
        module, _, _ = rlm([turn("SUBMIT(llm_query('a?'))")] * 2, max_llm_calls=1, sub_lm=sub)
        for _ in range(2):
            assert module(text="t", query="q").answer == "yes"

    def test_failures_are_the_codes_to_handle(self):
        sub = ScriptedLM({"good": "yes", "bad": [LMServerError("down"), LMServerError("down")]})
        code = (
            "print(llm_query_batched(['bad', 'good', '']))\n"
            "try: llm_query('bad')\nexcept RuntimeError as error: print(error)\n"
            "llm_query('')"
        )
        module, _, _ = rlm([turn(code), turn("SUBMIT('x')")], sub_lm=sub)
        output = module(text="t", query="q").trajectory[0]["output"]
        assert "['[ERROR] down', 'yes', '[ERROR] prompt cannot be empty']" in output
        assert "llm_query: LMServerError: down" in output
        assert "prompt cannot be empty" in output

    @pytest.mark.parametrize("error", [BudgetExceeded("no more"), LMAuthError("no key")])
    @pytest.mark.parametrize("code", ["llm_query('a')", "llm_query_batched(['a', 'b'])"])
    def test_what_other_rows_would_meet_too_is_raised(self, error, code):
        def fails(request):
            raise error

        module, _, _ = rlm([turn(code)], sub_lm=ScriptedLM(fails))
        with pytest.raises(type(error)):
            module(text="t", query="q")

    def test_the_same_question_is_paid_for_once(self):
        sub = ScriptedLM(lambda request: "yes", cache=True)
        module, _, _ = rlm([turn("SUBMIT(llm_query('a') + llm_query('a'))")], sub_lm=sub)
        assert module(text="t", query="q").answer == "yesyes"
        assert sub.call_count == 1

    def test_answers_that_are_not_shared_are_kept_for_the_row(self):
        sub = ScriptedLM("yes", cache=False)
        module, _, _ = rlm(
            [turn("llm_query('a?')\nSUBMIT(''.join(llm_query_batched(['b?', 'b?'])))")], sub_lm=sub
        )
        ticket = Ticket("run", "step", "row")
        token = TICKET.set(ticket)
        try:
            assert module(text="t", query="q").answer == "yesyes"
        finally:
            TICKET.reset(token)
        names = [request.private for request in sub.calls]
        assert None not in names
        assert len(set(names)) == 3
        assert ticket.paid == {"scripted/model": 4}

    def test_a_row_that_is_retried_asks_for_other_answers(self):
        sub = ScriptedLM("yes", cache=True)
        ticket = Ticket("run", "step", "row")
        ticket.spoil(Request.of(sub.model, "a?", **sub.options))
        token = TICKET.set(ticket)
        try:
            assert Queries(1, sub).llm_query("a?") == "yes"
        finally:
            TICKET.reset(token)
        assert sub.calls[0].rollout_id is not None

    def test_they_are_counted_and_told_of(self):
        heard = []

        class Ear(BaseCallback):
            def on_lm_start(self, call_id, instance, inputs):
                heard.append(inputs["prompt"])

        module, _, _ = rlm([turn("SUBMIT(llm_query('a?'))")], sub_lm=ScriptedLM("yes", model="scripted/sub"))
        with context(callbacks=[Ear()], track_usage=True):
            found = module(text="t", query="q")
        assert "a?" in heard
        assert set(found.get_lm_usage()) == {"scripted/model", "scripted/sub"}


def noop():
    return None


class TestTools:
    def test_code_calls_them(self):
        def find(word: str, times: int = 1) -> list[str]:
            """Find a word."""
            return [word] * times

        async def later(x: int) -> int:
            return x + 1

        tools = [find, Tool(later, name="plus_one")]
        module, lm, _ = rlm(
            [turn("SUBMIT(find('a', plus_one(1)))")], signature="text -> answer: list[str]", tools=tools
        )
        assert module(text="t").answer == ["a", "a"]
        assert "`find`: Find a word." in lm.calls[0].messages[0].content
        assert list(module.tools) == ["find", "plus_one"]

    @pytest.mark.parametrize(
        ("signature", "tools", "said"),
        [
            ("a -> b", [Tool(noop, name="no-name")], "Invalid tool name 'no-name'"),
            ("a -> b", [Tool(noop, name="llm_query")], "conflicts with built-in sandbox function"),
            ("a -> b", [Tool(noop, name="SUBMIT")], "conflicts with built-in sandbox function"),
            ("a -> b", [Tool(noop, name="x"), Tool(noop, name="x")], "Duplicate tool name 'x'"),
            ("a -> b", [Tool(noop, name="a")], r"Input fields conflict with user tools: \['a'\]"),
            ("llm_query -> b", [], "Input fields conflict with built-in sandbox functions"),
            ("interpreter_factory -> b", [], "Input fields conflict"),
            ("a -> trajectory", [], r"Output fields conflict with RLM result metadata: \['trajectory'\]"),
        ],
    )
    def test_names_that_are_taken_are_refused(self, signature, tools, said):
        with pytest.raises(SignatureError, match=said):
            RLM(signature, tools=tools)

    def test_a_list_of_functions_is_wanted(self):
        with pytest.raises(TypeError, match="tools must be a list, not a dict"):
            RLM("a -> b", tools={"f": len})
        with pytest.raises(TypeError, match="must be callable, got int"):
            RLM("a -> b", tools=[3])


class TestNaming:
    def test_without_an_interpreter_it_does_not_run(self):
        module = RLM("text -> answer")
        lm = ScriptedLM([])
        module.set_lm(lm)
        with pytest.raises(ConfigurationError, match="RLM runs code that a model writes"):
            module(text="t")
        assert lm.call_count == 0

    def test_settings_and_the_call_name_one_too(self):
        module = RLM("text -> answer")
        module.set_lm(ScriptedLM([turn("x")] * 3))
        factory, made = scripted(FinalOutput({"answer": "x"}))
        assert module(text="t", interpreter_factory=factory).answer == "x"
        with context(interpreter_factory=factory):
            assert module(text="t").answer == "x"
        configure(interpreter_factory=factory)
        try:
            assert module(text="t").answer == "x"
        finally:
            configure(interpreter_factory=None)
        assert len(made) == 3

    def test_an_interpreter_is_no_factory(self):
        with pytest.raises(TypeError, match="is an interpreter"):
            RLM("a -> b", interpreter_factory=ScriptedInterpreter())
        with pytest.raises(TypeError, match="is an interpreter"):
            RLM("a -> b")(a=1, interpreter_factory=ScriptedInterpreter())

    def test_the_interpreters_rules_are_in_the_prompt(self):
        module, lm, _ = rlm([turn("SUBMIT('x')")])
        module(text="t", query="q")
        assert PythonInterpreter.execution_instructions in prompt(lm)


class TestFields:
    def test_inputs_are_those_of_the_signature(self):
        module, _, _ = rlm([turn("x")], [FinalOutput({"answer": "x"})])
        with pytest.raises(ValueError, match=r"Missing required inputs: \['query', 'text'\]"):
            module()
        with pytest.raises(ValueError, match=r"Unexpected inputs not declared in the signature: \['more'\]"):
            module(text="t", query="q", more=1)
        assert module.input_names() == module.required_names() == ("text", "query")
        assert module.output_names() == ("answer", "trajectory", "final_reasoning")

    def test_fields_and_state_are_named_as_in_dspy(self, tmp_path):
        module, _, _ = rlm([], [])
        assert list(module.dump_state()) == ["generate_action", "extract"]
        assert module.generate_action.signature.signature == (
            "variables_info, repl_history, iteration -> reasoning, code"
        )
        assert module.extract.signature.signature == "variables_info, repl_history -> answer"
        module.generate_action.signature = module.generate_action.signature.with_instructions("Better.")
        module.save(tmp_path / "rlm.json")
        other = RLM("text, query -> answer")
        other.load(tmp_path / "rlm.json")
        assert other.generate_action.signature.instructions == "Better."

    def test_the_constructor_is_dspys(self):
        module = RLM("a -> b", 3, 4, 5, True, [], "scripted/x", ScriptedInterpreter)
        assert (module.max_iters, module.max_llm_calls, module.max_output_chars) == (3, 4, 5)
        assert (module.verbose, module.tools, module.sub_lm) == (True, {}, "scripted/x")

    def test_copies_run_apart(self):
        module, _, made = rlm([turn("x")] * 2, [FinalOutput({"answer": "x"})])
        copy = module.deepcopy()
        assert copy(text="t", query="q").answer == "x"
        assert module(text="t", query="q").answer == "x"
        assert len(made) == 2


class TestRows:
    def test_from_a_coroutine(self):
        async def both():
            module, _, _ = rlm([turn("x = text\nSUBMIT(x)")] * 2)
            return await asyncio.gather(module.acall(text="a", query="q"), module.acall(text="b", query="q"))

        assert [found.answer for found in asyncio.run(both())] == ["a", "b"]

    def test_two_hundred_rows_of_a_flow_do_not_see_each_other(self):
        def answer(request):
            content = request.messages[-1].content
            if "repl_history" not in content:
                return f"<{content}>"
            if "(no code was run so far)" in content:
                return turn("found = [n for n in dir() if n == 'mine']\nmine = text\nprint(found)")
            return turn("SUBMIT(llm_query(mine))")

        lm = ScriptedLM(answer, cache=True)
        rows = [{"text": f"row {number}", "id": str(number)} for number in range(200)]
        flow = Stream.from_iterable(rows).through(
            RLM("text -> answer", interpreter_factory=PythonInterpreter), capacity=64
        )
        done = flow.to_list(lm=lm)
        assert sorted(row["answer"] for row in done) == sorted(f"<row {number}>" for number in range(200))
        assert {json.dumps(row["trajectory"][0]["output"]) for row in done} == {'"[]\\n"'}
        assert lm.call_count == 200 * 3

    def test_a_row_whose_interpreter_dies_is_a_dead_letter(self, tmp_path):
        def answer(request):
            bad = "row 3" in request.messages[-1].content
            return turn("import os; os._exit(1)" if bad else "SUBMIT(text)")

        rows = [{"text": f"row {number}"} for number in range(6)]
        module = RLM("text -> answer", interpreter_factory=PythonInterpreter)
        flow = (
            Stream.from_iterable(rows, name="r")
            .through(module)
            .write(str(tmp_path / "out.jsonl"), dead_letters=str(tmp_path / "dead.jsonl"))
        )
        report = flow.run(lm=ScriptedLM(answer), state=str(tmp_path / "s"), quiet=True)
        assert (report.rows_out, report.dead_letters) == (5, 1)
        assert "its process ended (exit code 1)" in (tmp_path / "dead.jsonl").read_text()

    def test_a_row_whose_time_is_up_takes_its_process_along(self, tmp_path):
        from dspy_stream.interpreters import server as servers

        lm = ScriptedLM(lambda request: turn("import time; time.sleep(60)"))
        module = RLM("text -> answer", interpreter_factory=PythonInterpreter)
        flow = (
            Stream.from_iterable([{"text": str(number)} for number in range(3)], name="r")
            .through(module, timeout=0.5)
            .limit_failures(consecutive=None, ratio=None)
            .write(str(tmp_path / "out.jsonl"), dead_letters=str(tmp_path / "dead.jsonl"))
        )
        report = flow.run(lm=lm, state=str(tmp_path / "s"), quiet=True)
        assert (report.rows_out, report.dead_letters) == (0, 3)
        assert "RowTimeout" in (tmp_path / "dead.jsonl").read_text()
        deadline = time.monotonic() + 10
        while servers._current._ends and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert not servers._current._ends

    def test_without_an_interpreter_a_flow_stops_at_once(self, tmp_path):
        flow = (
            Stream.from_iterable([{"text": "a"}], name="r")
            .through(RLM("text -> answer"))
            .write(str(tmp_path / "out.jsonl"))
        )
        with pytest.raises(ConfigurationError, match="runs code that a model writes"):
            flow.run(lm=ScriptedLM("x"), state=str(tmp_path / "s"), quiet=True)

    def test_a_context_around_a_flow_names_one_for_its_rows(self):
        lm = ScriptedLM(lambda request: turn("SUBMIT(text)"))
        with context(interpreter_factory=PythonInterpreter):
            done = Stream.from_iterable([{"text": "a"}]).through(RLM("text -> answer")).to_list(lm=lm)
        assert [row["answer"] for row in done] == ["a"]

    def test_as_a_part_of_a_program(self):
        class Both(Module):
            def __init__(self):
                self.rlm = RLM("text -> answer", interpreter_factory=PythonInterpreter)

            def forward(self, text):
                return self.rlm(text=self.rlm(text=text).answer)

        program = Both()
        program.set_lm(ScriptedLM([turn("SUBMIT(text + '!')")] * 2))
        assert program(text="a").answer == "a!!"
        assert [name for name, _ in program.named_predictors()] == ["rlm.generate_action", "rlm.extract"]
