"""ScriptedInterpreter: the script, what it keeps, its end."""

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters import (
    CodeExecutionError,
    CodeInterpreter,
    CodeInterpreterError,
    FinalOutput,
    ScriptedInterpreter,
)


def test_results_come_in_order_and_exceptions_are_raised():
    python = ScriptedInterpreter(["a", 1, CodeExecutionError("no"), FinalOutput({"x": 1})])
    assert isinstance(python, CodeInterpreter)
    assert python.execute("one", {"v": 1}) == "a"
    assert python.execute("two") == 1
    with pytest.raises(CodeExecutionError, match="no"):
        python.execute("three")
    assert python.execute("four") == FinalOutput({"x": 1})
    assert python.calls == [("one", {"v": 1}), ("two", {}), ("three", {}), ("four", {})]
    with pytest.raises(ConfigurationError, match="all 4 results have been used; the code begins 'five'"):
        python.execute("five")


def test_a_function_sees_code_and_variables():
    python = ScriptedInterpreter(lambda code, variables: f"{code} {variables}")
    assert python.execute("c", {"v": 1}) == "c {'v': 1}"


def test_a_result_may_call_tools():
    python = ScriptedInterpreter([lambda tools: tools["f"](2)], tools={"f": lambda x: x + 1})
    assert python.execute("f(2)") == 3


def test_after_shutdown_it_is_over():
    python = ScriptedInterpreter(["a"])
    assert not python.started
    python.start()
    python.shutdown()
    assert python.started
    assert python.over
    with pytest.raises(CodeInterpreterError, match="over"):
        python.execute("1")


def test_final_outputs_are_compared_by_value():
    assert FinalOutput(1) == FinalOutput(1)
    assert FinalOutput(1) != FinalOutput(2)
    assert FinalOutput(1) != 1
    assert repr(FinalOutput("a")) == "FinalOutput('a')"
