"""Code in answers, and which interpreter runs it."""

import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters import CodeExecutionError, CodeInterpreterError, ScriptedInterpreter
from dspy_stream.modules.coding import check_factory, factory_for, interpreting, python_in, ran, run_by


class TestPythonIn:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("x = 1", "x = 1"),
            ("  \n x = 1\n", "x = 1"),
            ("```python\nx = 1\n```", "x = 1"),
            ("```py\nx = 1\n```", "x = 1"),
            ("```Python3 title\nx = 1\n```", "x = 1"),
            ("```\nx = 1\n```", "x = 1"),
            ("Here:\n```python\nx = 1\n\n\n\ny = 2 # ---\n```\nDone. ```more```", "x = 1\n\n\n\ny = 2 # ---"),
            ("```python\nif a:\n    b\n", "if a:\n    b"),
            ("```\n```python\nx = 1\n```\n```", "x = 1"),
            ("```python\nfirst\n```\nand\n```python\nsecond\n```", "first"),
            ("```python\ns = '```json'\nt = 1\n```", "s = '```json'\nt = 1"),
            ("s = '```json'", "s = '```json'"),
            ("```python x = 1```", "x = 1"),
            ("``` x = 1 ```", "x = 1"),
            ("```python\r\nx = 1\r\n```", "x = 1"),
            ("```python\n    indented\n```", "    indented"),
            ("```python\n```", ""),
            ("", ""),
        ],
    )
    def test_the_first_fence_or_all_of_it(self, text, code):
        assert python_in(text) == code

    @pytest.mark.parametrize("language", ["json", "bash", "JavaScript"])
    def test_other_languages_are_refused(self, language):
        with pytest.raises(SyntaxError, match=f"Expected Python code but got ```{language.lower()} fence"):
            python_in(f"```{language}\nx\n```")


class TestFactories:
    def test_nobody_has_named_one(self):
        with pytest.raises(ConfigurationError) as raised:
            factory_for("RLM", None)
        for word in (
            "RLM runs code",
            "interpreter_factory=dspy_stream.PythonInterpreter",
            "configure",
            "describe()",
        ):
            assert word in str(raised.value)

    def test_the_modules_goes_before_the_contexts_and_that_before_the_process(self):
        one, two, three = (lambda: 1), (lambda: 2), (lambda: 3)
        configure(interpreter_factory=one)
        try:
            assert factory_for("x", None) is one
            with context(interpreter_factory=two):
                assert factory_for("x", None) is two
                assert factory_for("x", three) is three
        finally:
            configure(interpreter_factory=None)

    def test_what_is_no_factory_is_refused(self):
        assert check_factory(None) is None
        assert check_factory(ScriptedInterpreter) is ScriptedInterpreter
        with pytest.raises(TypeError, match="is an interpreter"):
            check_factory(ScriptedInterpreter())
        with pytest.raises(TypeError, match=r"zero-argument callable.*not int"):
            check_factory(3)
        with context(interpreter_factory=3), pytest.raises(TypeError, match="zero-argument"):
            factory_for("x", None)
        with (
            pytest.raises(TypeError, match="must make a CodeInterpreter, not int"),
            interpreting("x", lambda: 3),
        ):
            pass

    def test_an_interpreter_is_shut_down_however_it_ends(self):
        made = []

        def factory():
            made.append(ScriptedInterpreter())
            return made[-1]

        with interpreting("x", factory) as python:
            assert not python.over
        with pytest.raises(KeyError), interpreting("x", factory):
            raise KeyError
        assert [each.over for each in made] == [True, True]

    def test_one_of_the_callers_is_not(self):
        own = ScriptedInterpreter()
        with run_by("x", own, None) as python:
            assert python is own
        assert not own.over
        with pytest.raises(TypeError, match="must be a CodeInterpreter, not int"), run_by("x", 3, None):
            pass


class TestRan:
    def test_what_the_model_may_mend_is_a_text(self):
        python = ScriptedInterpreter(["out", SyntaxError("bad (line 1)"), CodeExecutionError("NameError: x")])
        assert ran(python, "a", {"v": 1}) == ("out", None)
        assert ran(python, "b") == (None, "SyntaxError: bad (line 1)")
        assert ran(python, "c") == (None, "NameError: x")
        assert python.calls[0] == ("a", {"v": 1})

    def test_what_nobody_can_mend_is_raised(self):
        python = ScriptedInterpreter([CodeInterpreterError("gone")])
        with pytest.raises(CodeInterpreterError, match="gone"):
            ran(python, "a")

    def test_coroutine_functions_are_awaited(self):
        class Later(ScriptedInterpreter):
            async def execute(self, code, variables=None):
                return super().execute(code, variables)

            async def shutdown(self):
                super().shutdown()

        with interpreting("x", lambda: Later(["out"])) as python:
            assert ran(python, "a") == ("out", None)
        assert python.over
