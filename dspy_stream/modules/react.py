"""ReAct: think, call a tool, look at what it gave, until the answer can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from dspy_stream.errors import ConfigurationError, ContextWindowExceededError
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.tooling import call_tool, gathered
from dspy_stream.modules.turns import Turns
from dspy_stream.program import OutputField, Prediction, Signature
from dspy_stream.program.types import Tool

__all__ = ["ReAct"]

_log: Final = logging.getLogger("dspy_stream")
_FINISH: Final = "finish"


class ReAct(Turns):
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
        super().__init__(signature, max_iters)
        self.tools = gathered(tools, reserved=_FINISH, owner="ReAct")
        self.tools[_FINISH] = Tool(_finished, name=_FINISH, desc=f"All that {self._outputs()} need is known.")
        self.react = Predict(self._turn_signature())
        self.extract = self._extractor()

    def _turn_signature(self) -> type[Signature]:
        how = (
            f"You work as an agent, turn by turn. You are given {self._inputs()}, and as `trajectory` your "
            f"turns so far; you are to find out what is needed to write {self._outputs()}, with tools to "
            "help.\n"
            "In each turn write `next_thought`, what you make of things as they are and what to do next; "
            "`next_tool_name`, the tool to call; and `next_tool_args`, its arguments as a JSON object. What "
            "the tool gives is added to the trajectory as an observation.\n"
            f"Call `{_FINISH}` when nothing more is needed. The tools are:"
        )
        return (
            self._instructed(how, self.tools.values())
            .append("next_thought", OutputField(), str)
            .append("next_tool_name", OutputField(), Literal[tuple(self.tools)])
            .append("next_tool_args", OutputField(), dict[str, Any])
        )

    def forward(self, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there."""
        limit = self._limit(inputs)
        trajectory: dict[str, Any] = {}
        for turn in range(limit):
            try:
                said = self._ask(self.react, trajectory, inputs)
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
        outputs = self._ask(self.extract, trajectory, inputs)
        return Prediction(trajectory=trajectory, **outputs)

    def _observation(self, name: str, args: Mapping[str, Any]) -> Any:
        tool = self.tools.get(name)
        if tool is None:  # taken away after the signature was made of the tools
            return f"Execution error in {name}: there is no such tool; there are: {', '.join(self.tools)}"
        value, _ = call_tool(tool, {} if name == _FINISH else args)
        return value


def _finished() -> str:
    return "Completed."
