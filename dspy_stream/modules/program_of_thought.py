"""ProgramOfThought: the model writes a program, and answers from what it gave."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from dspy_stream.interpreters.base import CodeExecutionError, CodeInterpreter, FinalOutput, InterpreterFactory
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.coding import check_factory, python_in, ran, run_by
from dspy_stream.modules.given import inputs_of
from dspy_stream.modules.module import Module
from dspy_stream.program import (
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
    make_signature,
)

__all__ = ["ProgramOfThought", "code_in", "run_code"]

_ASSIGNED: Final = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)")


class ProgramOfThought(Module):
    """A model that writes a Python program for the question, and its answer from what the program gave.

    A program that fails is shown to the model with its error, to be written anew, ``max_iters`` programs
    in all. The outputs are then written by a ChainOfThought. That makes up to ``max_iters + 1`` calls.
    What a program gives is what it passes to ``SUBMIT``, or prints, or its last value.

    It runs code that a model writes, so it does so only where an interpreter is named: as
    ``interpreter_factory``, here or in ``configure``; :class:`PythonInterpreter` is ours. Each call has a
    session of its own. A caller may bring an interpreter too, as the first argument of a call, or as
    ``interpreter``: its variables then stay from call to call, so flows refuse it. DSPy 3.4 has marked
    this module as old and recommends :class:`RLM`.

    Args:
        signature: a Signature class, or its string form.
        max_iters: how many programs at most.
        interpreter_factory: makes an interpreter.
        interpreter: an interpreter that is yours to shut down.

    Raises:
        ConfigurationError: (when called) no interpreter is named, or one for all rows of a flow.
        CodeExecutionError: (when called) the last program failed too.
        CodeInterpreterError: (when called) the interpreter cannot go on.

    See Chen et al., "Program of Thoughts Prompting", 2022.

    >>> from dspy_stream.interpreters import PythonInterpreter
    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> pot = ProgramOfThought("question -> answer: int", interpreter_factory=PythonInterpreter)
    >>> pot.set_lm(ScriptedLM([
    ...     {"reasoning": "Compute.", "generated_code": "SUBMIT({'answer': 6 * 7})"},
    ...     {"reasoning": "It says 42.", "answer": "42"},
    ... ]))
    >>> pot(question="What is 6 times 7?").answer
    42
    """

    def __init__(
        self,
        signature: str | type[Signature],
        max_iters: int = 3,
        interpreter_factory: InterpreterFactory | None = None,
        *,
        interpreter: CodeInterpreter | None = None,
    ) -> None:
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters
        self._interpreter_factory = check_factory(interpreter_factory)
        self._interpreter = interpreter
        code = OutputField(desc="python code that answers the question")
        generate = self._asking(
            f"Write Python code that computes {self._outputs()} from {self._inputs()}. When the code knows "
            f"them, it hands them in with `SUBMIT`, which is there to be called, as one dict "
            f"of {self._outputs()}."
        ).append("generated_code", code, str)
        again = (
            self._asking(
                f"You were given {self._inputs()}, and wrote `previous_code`, which failed with `error`. "
                "Write it anew, without the fault. It hands in its results with `SUBMIT`, as one dict of "
                f"{self._outputs()}."
            )
            .append("previous_code", InputField(desc="the code that failed"), str)
            .append("error", InputField(desc="what it failed with"), str)
            .append("generated_code", code, str)
        )
        answer = (
            make_signature(dict(self.signature.input_fields), self._about_the_answer())
            .append("final_generated_code", InputField(desc="the code that was run"), str)
            .append("code_output", InputField(desc="what it gave"), str)
        )
        for name, field in self.signature.output_fields.items():
            answer = answer.append(name, field, field.annotation)
        self.code_generate = ChainOfThought(generate)
        self.code_regenerate = ChainOfThought(again)
        self.generate_output = ChainOfThought(answer)

    def _inputs(self) -> str:
        return ", ".join(f"`{name}`" for name in self.signature.input_fields)

    def _outputs(self) -> str:
        return ", ".join(f"`{name}`" for name in self.signature.output_fields)

    def _asking(self, how: str) -> type[Signature]:
        return make_signature(dict(self.signature.input_fields), f"{self.signature.instructions}\n\n{how}")

    def _about_the_answer(self) -> str:
        return (
            f"{self.signature.instructions}\n\n"
            f"Code was written for this and run. From `final_generated_code` and its `code_output`, give "
            f"{self._outputs()}."
        )

    def forward(self, interpreter: CodeInterpreter | None = None, /, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there. ``interpreter`` is the caller's, and stays so."""
        if "interpreter" in inputs and "interpreter" not in self.signature.input_fields:
            raise TypeError("an interpreter of your own is the first positional argument of a call")
        given = interpreter if interpreter is not None else self._interpreter
        with run_by("ProgramOfThought", given, self._interpreter_factory) as python:
            said = self.code_generate(**inputs)
            for number in range(1, self.max_iters + 1):
                code, wrong = code_in(str(said.generated_code or ""))
                if wrong is None:
                    output, wrong = run_code(python, code)
                if wrong is None:
                    break
                if number == self.max_iters:
                    raise CodeExecutionError(f"Max hops reached. Failed to run ProgramOfThought: {wrong}")
                said = self.code_regenerate(**inputs, previous_code=code, error=wrong)
        made: Prediction = self.generate_output(**inputs, final_generated_code=code, code_output=output)
        return made

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs."""
        return inputs_of(self.signature)[0]

    def required_names(self) -> tuple[str, ...]:
        """Those of them that must be given."""
        return inputs_of(self.signature)[1]

    def output_names(self) -> tuple[str, ...]:
        """What is written at the end."""
        return ("reasoning", *self.signature.output_fields)


def code_in(text: str) -> tuple[str, str | None]:
    """The code of an answer, and None; or the answer, and what was wrong with it."""
    try:
        code = python_in(text)
    except SyntaxError as error:
        return text, str(error)
    return (code, None) if code else (text, "Error: Empty code after parsing.")


def run_code(interpreter: CodeInterpreter, code: str) -> tuple[str, str | None]:
    """What code gave as JSON, and None; or nothing, and what was wrong, for the model to mend.

    Raises:
        CodeInterpreterError: the interpreter cannot go on.
    """
    result, wrong = ran(interpreter, _showing(code))
    if wrong is not None:
        return "", wrong
    if isinstance(result, FinalOutput):
        result = result.output
    return json.dumps(result, ensure_ascii=False, default=str), None


def _showing(code: str) -> str:
    """The code, with the name on a further line where the last one gives a value to it."""
    last = _ASSIGNED.match(code.rpartition("\n")[2])
    return f"{code}\n{last.group(1)}" if last is not None else code
