"""ReAct: think, call a tool, look at what it gave, until the answer can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from dspy_stream.errors import ConfigurationError, ContextWindowExceededError
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.tooling import call_tool, gathered, observed
from dspy_stream.program import (
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
    make_signature,
)
from dspy_stream.program.types import Tool

__all__ = ["ReAct"]

_log: Final = logging.getLogger("dspy_stream")
_FINISH: Final = "finish"
_KEYS: Final = 4  # thought, tool name, arguments and observation of one turn
_CUTS: Final = 3


class ReAct(Module):
    """An agent in plain text: each turn the model writes a thought, a tool's name and its arguments.

    What the tool gives is shown to it in the next turn; a tool that fails gives the failure. When it
    names ``finish``, or after ``max_iters`` turns, a ChainOfThought writes the outputs from all that
    was found. That makes up to ``max_iters + 1`` calls; ``max_iters`` may be given to a call too.

    The prediction has the outputs, ``reasoning``, and the ``trajectory``: a dict of ``thought_0``,
    ``tool_name_0``, ``tool_args_0``, ``observation_0``, ``thought_1``... Where it grows longer than the
    model can read, its oldest turns are left out, of the prediction too; ``truncate_trajectory`` says
    which, and may be overridden.

    Tools may be coroutine functions. Others are called on the thread that drives the row and hold up
    the rows beside it as long as they block; they may use modules themselves. Pictures and the like
    that a tool gives are named but not shown.

    Args:
        signature: a Signature class, or its string form.
        tools: functions, callable objects or Tools.
        max_iters: how many turns at most.

    Raises:
        SignatureError: (when made) two tools of the same name, or one named ``finish``.
        AdapterParseError: (when called) a turn could not be read, nor its repair.
        ContextWindowExceededError: not even the inputs fit.

    See Yao et al., "ReAct: Synergizing Reasoning and Acting in Language Models", 2023.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> def weather(city: str) -> str:
    ...     return f"Sunny in {city}."
    >>> agent = ReAct("question -> answer", tools=[weather])
    >>> agent.set_lm(ScriptedLM([
    ...     {"next_thought": "Look.", "next_tool_name": "weather", "next_tool_args": {"city": "Rome"}},
    ...     {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": {}},
    ...     {"reasoning": "It was said.", "answer": "sunny"},
    ... ]))
    >>> done = agent(question="How is the weather in Rome?")
    >>> done.answer, done.trajectory["observation_0"]
    ('sunny', 'Sunny in Rome.')
    """

    def __init__(
        self,
        signature: str | type[Signature],
        tools: Iterable[Callable[..., Any]],
        max_iters: int = 20,
    ) -> None:
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters
        self.tools = gathered(tools, reserved=_FINISH, owner="ReAct")
        self.tools[_FINISH] = Tool(_finished, name=_FINISH, desc=f"All that {self._outputs()} need is known.")
        self.react = Predict(self._turn_signature())
        self.extract = ChainOfThought(
            make_signature(dict(self.signature.fields), self.signature.instructions).append(
                "trajectory", InputField(), str
            )
        )

    def _outputs(self) -> str:
        return ", ".join(f"`{name}`" for name in self.signature.output_fields)

    def _turn_signature(self) -> type[Signature]:
        inputs = ", ".join(f"`{name}`" for name in self.signature.input_fields)
        tools = "\n".join(f"({number}) {tool.format()}" for number, tool in enumerate(self.tools.values(), 1))
        instructions = (
            f"{self.signature.instructions}\n\n"
            f"You work as an agent, turn by turn. You are given {inputs}, and as `trajectory` your turns "
            f"so far; you are to find out what is needed to write {self._outputs()}, with tools to help.\n"
            "In each turn write `next_thought`, what you make of things as they are and what to do next; "
            "`next_tool_name`, the tool to call; and `next_tool_args`, its arguments as a JSON object. What "
            "the tool gives is added to the trajectory as an observation.\n"
            f"Call `{_FINISH}` when nothing more is needed. The tools are:\n\n{tools}"
        )
        return (
            make_signature(dict(self.signature.input_fields), instructions)
            .append("trajectory", InputField(), str)
            .append("next_thought", OutputField(), str)
            .append("next_tool_name", OutputField(), Literal[tuple(self.tools)])
            .append("next_tool_args", OutputField(), dict[str, Any])
        )

    def forward(self, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there."""
        limit = (
            self.max_iters if "max_iters" in self.signature.input_fields else inputs.pop("max_iters", None)
        )
        trajectory: dict[str, Any] = {}
        for turn in range(self.max_iters if limit is None else limit):
            try:
                said, trajectory = self._ask(self.react, trajectory, inputs)
            except ConfigurationError:
                raise
            except (ContextWindowExceededError, ValueError) as error:
                _log.warning("ReAct: the trajectory ends after %d turns: %s", turn, error)
                break
            name, args = said.next_tool_name, said.next_tool_args
            trajectory[f"thought_{turn}"] = said.next_thought
            trajectory[f"tool_name_{turn}"] = name
            trajectory[f"tool_args_{turn}"] = args
            trajectory[f"observation_{turn}"] = self._observation(name, args)
            if name == _FINISH:
                break
        outputs, trajectory = self._ask(self.extract, trajectory, inputs)
        return Prediction(trajectory=trajectory, **outputs)

    def _observation(self, name: str, args: Mapping[str, Any]) -> Any:
        value, _ = call_tool(self.tools[name], {} if name == _FINISH else args)
        return value

    def _ask(
        self, predictor: Callable[..., Any], trajectory: dict[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """What a predictor answers, and the trajectory that it could read."""
        for _ in range(_CUTS):
            try:
                return predictor(**inputs, trajectory=_shown(trajectory)), trajectory
            except ContextWindowExceededError as error:  # noqa: PERF203
                last = error
                trajectory = self.truncate_trajectory(trajectory)
                _log.warning("ReAct: the prompt was too long; the oldest turn is left out of it")
        raise ContextWindowExceededError(
            f"The context window was exceeded even after {_CUTS} attempts to truncate the trajectory.",
            model=last.model,
            provider=last.provider,
        ) from last

    def truncate_trajectory(self, trajectory: dict[str, Any]) -> dict[str, Any]:
        """The trajectory without its oldest turn.

        Raises:
            ContextWindowExceededError: it has no more than one.
        """
        keys = list(trajectory)
        if len(keys) <= _KEYS:
            raise ContextWindowExceededError(
                "The trajectory is too long so your prompt exceeded the context window, but the trajectory "
                "cannot be truncated because it only has one tool call or none."
            )
        return {key: trajectory[key] for key in keys[_KEYS:]}

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs."""
        return tuple(self.signature.input_fields)

    def required_names(self) -> tuple[str, ...]:
        """Those of them that have no default."""
        return tuple(name for name in self.react.required_names() if name != "trajectory")

    def output_names(self) -> tuple[str, ...]:
        """The trajectory, and what is written at the end."""
        return ("trajectory", "reasoning", *self.signature.output_fields)


def _finished() -> str:
    return "Completed."


def _shown(trajectory: Mapping[str, Any]) -> str:
    """The trajectory as text; later lines are set in, so that no value passes for another entry."""
    lines = [f"{name}: {observed(value)}".replace("\n", "\n  ") for name, value in trajectory.items()]
    return "\n".join(lines) or "(no turn so far)"
