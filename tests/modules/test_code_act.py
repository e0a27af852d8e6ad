"""CodeAct: turns of code, tools of the host, errors, the end of the work."""

import pytest

from dspy_stream.errors import ConfigurationError, ContextWindowExceededError, SignatureError
from dspy_stream.interpreters import CodeExecutionError, PythonInterpreter, ScriptedInterpreter
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import CodeAct
from dspy_stream.program.types import Tool


def turn(code, finished=False):
    return {"generated_code": code, "finished": finished}


ANSWER = {"reasoning": "so", "answer": "42"}


def double(n: int) -> int:
    """Twice as much."""
    return 2 * n


def act(lines, results=None, tools=(double,), **options):
    factory = PythonInterpreter if results is None else lambda: ScriptedInterpreter(results)
    module = CodeAct("question -> answer", tools=list(tools), interpreter_factory=factory, **options)
    lm = ScriptedLM(lines)
    module.set_lm(lm)
    return module, lm


def test_code_calls_tools_until_it_has_finished():
    module, lm = act([turn("x = double(4)\nprint(x)"), turn("print(double(x))", True), ANSWER])
    found = module(question="?")
    assert (found.answer, found.reasoning) == ("42", "so")
    assert found.trajectory == {
        "generated_code_0": "x = double(4)\nprint(x)",
        "code_output_0": '"8\\n"',
        "generated_code_1": "print(double(x))",
        "code_output_1": '"16\\n"',
    }
    assert "`double`: Twice as much." in lm.calls[0].messages[0].content
    assert 'code_output_0: "8\\n"' in lm.calls[1].messages[-1].content


def test_errors_are_observations():
    module, _ = act([turn("a"), turn("", True), turn("c", True), ANSWER], [CodeExecutionError("no"), "seen"])
    assert module(question="?").trajectory == {
        "generated_code_0": "a",
        "observation_0": "Failed to execute the generated code: no",
        "observation_1": "Failed to parse the generated code: Error: Empty code after parsing.",
        "generated_code_2": "c",
        "code_output_2": '"seen"',
    }


@pytest.mark.parametrize(("made", "called", "turns"), [(2, None, 2), (9, 1, 1), (9, 0, 0)])
def test_after_so_many_turns_the_answer_is_written_all_the_same(made, called, turns):
    module, lm = act([turn("a")] * turns + [ANSWER], ["x"] * turns, max_iters=made)
    options = {} if called is None else {"max_iters": called}
    assert len(module(question="?", **options).trajectory) == 2 * turns
    assert lm.call_count == turns + 1


def test_the_oldest_turn_is_left_out_where_the_prompt_is_too_long():
    too_long = ContextWindowExceededError("too long")
    module, _ = act([turn("one"), turn("two"), too_long, turn("three", True), ANSWER], ["x"] * 3)
    found = module(question="?").trajectory
    assert list(found) == ["generated_code_1", "code_output_1", "generated_code_2", "code_output_2"]
    module, _ = act([too_long], [])
    with pytest.raises(ContextWindowExceededError, match="it only has one tool call or none"):
        module(question="?")
    module, lm = act([turn("x")] * 4 + [too_long] * 3, ["x"] * 4, max_iters=4)
    with pytest.raises(ContextWindowExceededError, match="exceeded even after 3 attempts"):
        module(question="?")
    assert lm.call_count == 7


def test_callable_objects_and_tools_are_tools_too():
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    tools = [Tool(Adder(), name="add"), double]
    module, _ = act([turn("print(add(1, double(2)))", True), ANSWER], tools=tools)
    assert module(question="?").trajectory["code_output_0"] == '"5\\n"'
    assert list(module.tools) == ["add", "double"]


def test_names_and_interpreters_are_checked():
    with pytest.raises(SignatureError, match="two tools are named `double`"):
        CodeAct("a -> b", [double, double])
    with pytest.raises(TypeError, match="is an interpreter"):
        CodeAct("a -> b", [], 5, ScriptedInterpreter())
    with pytest.raises(TypeError, match="first positional argument"):
        CodeAct("a -> b", [])(a=1, interpreter=ScriptedInterpreter())
    module = CodeAct("a -> b", [])
    module.set_lm(ScriptedLM([]))
    with pytest.raises(ConfigurationError, match="CodeAct runs code"):
        module(a=1)


def test_an_interpreter_of_the_callers_stays_open():
    module, _ = act([turn("x = double(1)", True), ANSWER])
    with PythonInterpreter() as own:
        module(own, question="?")
        assert own.execute("x") == 2


def test_fields_and_state_are_named_as_in_dspy():
    module, _ = act([])
    assert list(module.dump_state()) == ["codeact", "extractor.predict"]
    assert module.codeact.signature.signature == "question, trajectory -> generated_code, finished"
    assert module.extractor.predict.signature.signature == "question, trajectory -> reasoning, answer"
    assert module.input_names() == module.required_names() == ("question",)
    assert module.output_names() == ("trajectory", "reasoning", "answer")
    assert module.max_iters == 5
