"""CodeAct: an agent whose every action is a piece of code, which may call tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from dspy_stream.interpreters.base import CodeInterpreter, InterpreterFactory
from dspy_stream.modules.coding import check_factory, run_by
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.program_of_thought import code_in, run_code
from dspy_stream.modules.tooling import gathered
from dspy_stream.modules.turns import Turns
from dspy_stream.program import OutputField, Prediction, Signature
from dspy_stream.program.types import Tool

__all__ = ["CodeAct"]

_SUBMIT: Final = "SUBMIT"


class CodeAct(Turns):
    """An agent that acts by code: each turn the model writes Python, which may call tools.

    What the code prints is shown to it in the next turn, and so is an error. When it sets ``finished``,
    or after ``max_iters`` turns, a ChainOfThought writes the outputs from all that was seen.
    ``max_iters`` may be given to a call too. The prediction has the outputs, ``reasoning``, and the
    ``trajectory``: a dict of ``generated_code_0``, then ``code_output_0`` or ``observation_0``,
    ``generated_code_1``...

    It runs code that a model writes, so it does so only where an interpreter is named, as for
    :class:`ProgramOfThought`. Tools run here, not in the sandbox, where DSPy copies their source into it: so
    they may use whatever they like, and callable objects are tools too. DSPy 3.4 has marked this module
    as old and recommends :class:`RLM`.

    Args:
        signature: a Signature class, or its string form.
        tools: functions, callable objects or Tools.
        max_iters: how many turns at most.
        interpreter_factory: makes an interpreter.

    Raises:
        SignatureError: (when made) two tools of the same name.
        ConfigurationError: (when called) no interpreter is named.
        CodeInterpreterError: (when called) the interpreter cannot go on.

    See Wang et al., "Executable Code Actions Elicit Better LLM Agents", 2024.

    >>> from dspy_stream.interpreters import PythonInterpreter
    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> def double(n: int) -> int:
    ...     return 2 * n
    >>> act = CodeAct("n: int -> answer: int", tools=[double], interpreter_factory=PythonInterpreter)
    >>> act.set_lm(ScriptedLM([
    ...     {"generated_code": "print(double(21))", "finished": True},
    ...     {"reasoning": "It was printed.", "answer": "42"},
    ... ]))
    >>> done = act(n=21)
    >>> done.answer, done.trajectory["code_output_0"]
    (42, '"42\\\\n"')
    """

    def __init__(
        self,
        signature: str | type[Signature],
        tools: Iterable[Callable[..., Any]],
        max_iters: int = 5,
        interpreter_factory: InterpreterFactory | None = None,
    ) -> None:
        super().__init__(signature, max_iters)
        self.tools: dict[str, Tool] = gathered(tools, reserved=_SUBMIT, owner="CodeAct")
        self._interpreter_factory = check_factory(interpreter_factory)
        self.codeact = Predict(self._turn_signature())
        self.extractor = self._extractor()

    def _turn_signature(self) -> type[Signature]:
        how = (
            f"You work as an agent, turn by turn, and act by code. You are given {self._inputs()}, and as "
            "`trajectory` your turns so far; you are to find out what is needed to write "
            f"{self._outputs()}.\n"
            "In each turn write `generated_code`, Python that finds something out, in a fence. It must print "
            "what you want to see; it is added to the trajectory. Set `finished` to true in the turn whose "
            "code shows the last of what is needed.\n"
            "The code has Python's standard library, and can call these functions:"
        )
        return (
            self._instructed(how, self.tools.values())
            .append("generated_code", OutputField(desc="python code that finds something out"), str)
            .append("finished", OutputField(desc="whether nothing more is needed"), bool)
        )

    def forward(self, interpreter: CodeInterpreter | None = None, /, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there. ``interpreter`` is the caller's, and stays so."""
        if "interpreter" in inputs and "interpreter" not in self.signature.input_fields:
            raise TypeError("an interpreter of your own is the first positional argument of a call")
        limit = self._limit(inputs)
        trajectory: dict[str, Any] = {}
        with run_by("CodeAct", interpreter, self._interpreter_factory) as python:
            python.tools.update(self.tools)
            for turn in range(limit):
                said = self._ask(self.codeact, trajectory, inputs)
                code, wrong = code_in(str(said.generated_code or ""))
                if wrong is not None:
                    trajectory[f"observation_{turn}"] = f"Failed to parse the generated code: {wrong}"
                    continue
                trajectory[f"generated_code_{turn}"] = code
                output, wrong = run_code(python, code)
                if wrong is None:
                    trajectory[f"code_output_{turn}"] = output
                else:
                    trajectory[f"observation_{turn}"] = f"Failed to execute the generated code: {wrong}"
                if said.finished:
                    break
        outputs = self._ask(self.extractor, trajectory, inputs)
        return Prediction(trajectory=trajectory, **outputs)
