"""ProgramOfThought: programs, their repair, what the answer is written from, whose interpreter it is."""

import pytest

from dspy_stream.configuration import context
from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters import (
    CodeExecutionError,
    CodeInterpreterError,
    FinalOutput,
    PythonInterpreter,
    ScriptedInterpreter,
)
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ProgramOfThought
from dspy_stream.program import Signature
from dspy_stream.stream import Stream


def program(code):
    return {"reasoning": "r", "generated_code": code}


ANSWER = {"reasoning": "so", "answer": "42"}


def pot(lines, results=None, **options):
    made = []

    def factory():
        made.append(ScriptedInterpreter(results))
        return made[-1]

    module = ProgramOfThought(
        "question -> answer: int",
        interpreter_factory=factory if results is not None else PythonInterpreter,
        **options,
    )
    lm = ScriptedLM(lines)
    module.set_lm(lm)
    return module, lm, made


def prompt(lm, call=-1):
    return lm.calls[call].messages[-1].content


def test_the_answer_is_written_from_what_the_program_gave():
    module, lm, made = pot([program("SUBMIT({'answer': 6 * 7})"), ANSWER], [FinalOutput({"answer": 42})])
    found = module(question="6 * 7?")
    assert (found.answer, found.reasoning) == (42, "so")
    assert "[[ ## final_generated_code ## ]]\nSUBMIT({'answer': 6 * 7})" in prompt(lm)
    assert '[[ ## code_output ## ]]\n{"answer": 42}' in prompt(lm)
    assert made[0].over


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("SUBMIT({'answer': 1})", '{"output": {"answer": 1}}'),
        ("SUBMIT(answer=1)", '{"answer": 1}'),
        ("print('ä')", '"ä\\n"'),
        ("x = 1\ny = x + 1", "2"),
        ("if True:\n    y = 1", "null"),
        ("y = 1\ny == 2", "false"),
        ("```python\na = [1]\n```", "[1]"),
        ("s = '''a\n\n\n\n---\nb'''\nprint(s)", '"a\\n\\n\\n\\n---\\nb\\n"'),
    ],
)
def test_what_a_program_gives(code, output):
    module, lm, _ = pot([program(code), ANSWER])
    module(question="?")
    assert f"[[ ## code_output ## ]]\n{output}\n" in prompt(lm) + "\n"


def test_a_program_that_fails_is_written_anew():
    module, lm, _ = pot([program("1 / 0"), program("x ==="), program("SUBMIT(1)"), ANSWER])
    assert module(question="?").answer == 42
    assert "[[ ## previous_code ## ]]\n1 / 0" in prompt(lm, 1)
    assert "ZeroDivisionError: division by zero" in prompt(lm, 1)
    assert "SyntaxError: invalid syntax" in prompt(lm, 2)
    assert lm.call_count == 4


@pytest.mark.parametrize(
    ("code", "said"),
    [("", "Error: Empty code after parsing."), ("```json\n{}\n```", "Expected Python code")],
)
def test_an_answer_without_a_program_is_an_error_too(code, said):
    module, lm, made = pot([program(code), program("ok"), ANSWER], ["1"])
    module(question="?")
    assert said in prompt(lm, 1)
    assert made[0].calls == [("ok", {})]


def test_after_the_last_one_it_gives_up():
    module, lm, made = pot([program("a"), program("b")], [CodeExecutionError("no")] * 2, max_iters=2)
    with pytest.raises(RuntimeError, match=r"Max hops reached. Failed to run ProgramOfThought: no") as raised:
        module(question="?")
    assert isinstance(raised.value, CodeExecutionError)
    assert lm.call_count == 2
    assert made[0].over


def test_an_interpreter_that_cannot_go_on_ends_it():
    module, _, made = pot([program("a")], [CodeInterpreterError("gone")])
    with pytest.raises(CodeInterpreterError, match="gone"):
        module(question="?")
    assert made[0].over


class TestWhoseInterpreter:
    def test_nobody_has_named_one(self):
        module = ProgramOfThought("question -> answer")
        module.set_lm(ScriptedLM([]))
        with pytest.raises(ConfigurationError, match="ProgramOfThought runs code that a model writes"):
            module(question="?")

    def test_the_settings_name_one(self):
        module = ProgramOfThought("question -> answer")
        module.set_lm(ScriptedLM([program("x = 1"), ANSWER]))
        with context(interpreter_factory=PythonInterpreter):
            assert module(question="?").answer == "42"

    def test_one_of_the_callers_stays_open_and_keeps_its_variables(self):
        module = ProgramOfThought("question -> answer", 3)
        module.set_lm(ScriptedLM([program("x = 1"), ANSWER, program("print(x)"), ANSWER]))
        with PythonInterpreter() as own:
            module(own, question="?")
            module(own, question="?")
            assert own.execute("x") == 1
        with PythonInterpreter() as own:
            module = ProgramOfThought("question -> answer", interpreter=own)
            module.set_lm(ScriptedLM([program("x = 1"), ANSWER]))
            module(question="?")
            assert own.execute("x") == 1

    def test_a_flow_refuses_one_for_all_rows(self, tmp_path):
        own = ScriptedInterpreter(["1"] * 9)
        flow = Stream.from_iterable([{"question": "?"}], name="r").through(
            ProgramOfThought("question -> answer", interpreter=own)
        )
        with pytest.raises(ConfigurationError, match="rows of a flow would see each other's variables"):
            flow.write(str(tmp_path / "o.jsonl")).run(
                lm=ScriptedLM("x"), state=str(tmp_path / "s"), quiet=True
            )

    def test_wrong_ones_are_refused(self):
        with pytest.raises(TypeError, match="is an interpreter"):
            ProgramOfThought("a -> b", 3, ScriptedInterpreter())
        with pytest.raises(TypeError, match="first positional argument"):
            ProgramOfThought("a -> b")(a=1, interpreter=ScriptedInterpreter())
        with pytest.raises(TypeError, match="must be a CodeInterpreter"):
            ProgramOfThought("a -> b")(3, a=1)


def test_fields_and_state_are_named_as_in_dspy():
    class Sum(Signature):
        """Add carefully."""

    module = ProgramOfThought(Sum.append("x", *_in(int)).append("total", *_out(int)))
    assert list(module.dump_state()) == [
        "code_generate.predict", "code_regenerate.predict", "generate_output.predict",
    ]  # fmt: skip
    signatures = [each.predict.signature.signature for each in (
        module.code_generate, module.code_regenerate, module.generate_output,
    )]  # fmt: skip
    assert signatures == [
        "x -> reasoning, generated_code",
        "x, previous_code, error -> reasoning, generated_code",
        "x, final_generated_code, code_output -> reasoning, total",
    ]
    assert all("Add carefully." in each.signature.instructions for each in module.predictors())
    assert module.input_names() == module.required_names() == ("x",)
    assert module.output_names() == ("reasoning", "total")
    assert module.max_iters == 3


def _in(kind):
    from dspy_stream.program import InputField

    return InputField(), kind


def _out(kind):
    from dspy_stream.program import OutputField

    return OutputField(), kind


def test_rows_of_a_flow():
    def answer(request):
        content = request.messages[-1].content
        if "code_output" in content:
            return {"reasoning": "r", "answer": content.split("[[ ## code_output ## ]]\n")[1].split("\n")[0]}
        number = content.split("row ")[1].split("\n")[0]
        return program(f"try: mine\nexcept NameError: mine = {number}\nmine * 2")

    module = ProgramOfThought("question -> answer: int", interpreter_factory=PythonInterpreter)
    rows = [{"question": f"row {number}"} for number in range(60)]
    done = Stream.from_iterable(rows).through(module).to_list(lm=ScriptedLM(answer))
    assert sorted(row["answer"] for row in done) == [2 * number for number in range(60)]
