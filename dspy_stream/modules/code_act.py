"""CodeAct: an agent whose every action is a piece of code, which may call tools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dspy_stream.errors import ContextWindowExceededError
from dspy_stream.interpreters.base import CodeInterpreter, InterpreterFactory
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.coding import check_factory, run_by
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.program_of_thought import run_code
from dspy_stream.modules.tooling import gathered
from dspy_stream.program import (
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
    make_signature,
)
from dspy_stream.program.types import Tool

__all__ = ["CodeAct"]

_log: Final = logging.getLogger("dspy_stream")
_CUTS: Final = 3
_SUBMIT: Final = "SUBMIT"


class CodeAct(Module):
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
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters
        self.tools: dict[str, Tool] = gathered(tools, reserved=_SUBMIT, owner="CodeAct")
        self._interpreter_factory = check_factory(interpreter_factory)
        self.codeact = Predict(self._turn_signature())
        self.extractor = ChainOfThought(
            make_signature(dict(self.signature.fields), self.signature.instructions).append(
                "trajectory", InputField(), str
            )
        )

    def _turn_signature(self) -> type[Signature]:
        inputs = ", ".join(f"`{name}`" for name in self.signature.input_fields)
        outputs = ", ".join(f"`{name}`" for name in self.signature.output_fields)
        tools = "\n".join(f"({number}) {tool.format()}" for number, tool in enumerate(self.tools.values(), 1))
        instructions = (
            f"{self.signature.instructions}\n\n"
            f"You work as an agent, turn by turn, and act by code. You are given {inputs}, and as "
            f"`trajectory` your turns so far; you are to find out what is needed to write {outputs}.\n"
            "In each turn write `generated_code`, Python that finds something out, in a fence. It must print "
            "what you want to see; it is added to the trajectory. Set `finished` to true in the turn whose "
            "code shows the last of what is needed.\n"
            f"The code has Python's standard library, and can call these functions:\n\n{tools}"
        )
        return (
            make_signature(dict(self.signature.input_fields), instructions)
            .append("trajectory", InputField(), str)
            .append("generated_code", OutputField(desc="python code that finds something out"), str)
            .append("finished", OutputField(desc="whether nothing more is needed"), bool)
        )

    def forward(self, interpreter: CodeInterpreter | None = None, /, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there. ``interpreter`` is the caller's, and stays so."""
        fields = self.signature.input_fields
        if "interpreter" in inputs and "interpreter" not in fields:
            raise TypeError("an interpreter of your own is the first positional argument of a call")
        limit = self.max_iters if "max_iters" in fields else inputs.pop("max_iters", self.max_iters)
        trajectory: dict[str, Any] = {}
        with run_by("CodeAct", interpreter, self._interpreter_factory) as python:
            python.tools.update(self.tools)
            for turn in range(limit):
                said, trajectory = self._ask(self.codeact, trajectory, inputs)
                code, output, wrong = run_code(python, str(said.generated_code or ""))
                trajectory[f"generated_code_{turn}"] = code
                if wrong is None:
                    trajectory[f"code_output_{turn}"] = output
                else:
                    trajectory[f"observation_{turn}"] = f"Failed to execute the generated code: {wrong}"
                if said.finished:
                    break
        outputs, trajectory = self._ask(self.extractor, trajectory, inputs)
        return Prediction(trajectory=trajectory, **outputs)

    def _ask(
        self, predictor: Callable[..., Any], trajectory: dict[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """What a predictor answers, and the trajectory that it could read."""
        for _ in range(_CUTS):
            try:
                return predictor(**inputs, trajectory=_shown(trajectory)), trajectory
            except ContextWindowExceededError:  # noqa: PERF203 - a model was waited for
                if len(trajectory) <= 2:  # one turn: its code, and what came of it
                    raise
                trajectory = dict(list(trajectory.items())[2:])
                _log.warning("CodeAct: the prompt was too long; the oldest turn is left out of it")
        return predictor(**inputs, trajectory=_shown(trajectory)), trajectory

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs."""
        return tuple(self.signature.input_fields)

    def required_names(self) -> tuple[str, ...]:
        """Those of them that have no default."""
        return tuple(name for name in self.signature.input_fields if not self.signature.may_omit(name))

    def output_names(self) -> tuple[str, ...]:
        """The trajectory, and what is written at the end."""
        return ("trajectory", "reasoning", *self.signature.output_fields)


def _shown(trajectory: Mapping[str, Any]) -> str:
    """The trajectory as text; later lines are set in, so that no value passes for another entry."""
    return "\n".join(f"{name}: {value}".replace("\n", "\n  ") for name, value in trajectory.items()) or (
        "(no turn so far)"
    )
