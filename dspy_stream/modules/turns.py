"""What agents have in common that work in turns: the trajectory of them, and the answer written from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dspy_stream.errors import ContextWindowExceededError
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.given import inputs_of
from dspy_stream.modules.module import Module
from dspy_stream.modules.tooling import observed
from dspy_stream.program import InputField, Signature, ensure_signature, make_signature
from dspy_stream.program.types import Tool

__all__ = ["Turns"]

_log: Final = logging.getLogger("dspy_stream")
_CUTS: Final = 3


class Turns(Module):
    """The base of ReAct and CodeAct. A turn's entries in the trajectory end with its number."""

    def __init__(self, signature: str | type[Signature], max_iters: int) -> None:
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters

    def _instructed(self, how: str, tools: Iterable[Tool]) -> type[Signature]:
        """The signature of a turn but for what it writes: ``how`` to work, and the tools there are."""
        listed = "\n".join(f"({number}) {tool.format()}" for number, tool in enumerate(tools, 1))
        instructions = f"{self.signature.instructions}\n\n{how}\n\n{listed}"
        made = make_signature(dict(self.signature.input_fields), instructions)
        return made.append("trajectory", InputField(), str)

    def _inputs(self) -> str:
        return ", ".join(f"`{name}`" for name in self.signature.input_fields)

    def _outputs(self) -> str:
        return ", ".join(f"`{name}`" for name in self.signature.output_fields)

    def _extractor(self) -> ChainOfThought:
        """What writes the outputs at the end."""
        made = make_signature(dict(self.signature.fields), self.signature.instructions)
        return ChainOfThought(made.append("trajectory", InputField(), str))

    def _limit(self, inputs: dict[str, Any]) -> int:
        """How many turns at most; a call may say it, where no input has that name."""
        given = None if "max_iters" in self.signature.input_fields else inputs.pop("max_iters", None)
        return self.max_iters if given is None else given

    def _ask(
        self, predictor: Callable[..., Any], trajectory: dict[str, Any], inputs: Mapping[str, Any]
    ) -> Any:
        """What a predictor answers; the trajectory is shortened to what it could read."""
        for _ in range(_CUTS):
            try:
                return predictor(**inputs, trajectory=_shown(trajectory))
            except ContextWindowExceededError as error:  # noqa: PERF203 - a model was waited for
                last = error
                shorter = self.truncate_trajectory(dict(trajectory))
                trajectory.clear()
                trajectory.update(shorter)
                _log.warning(
                    "%s: the prompt was too long; the oldest turn is left out of it", type(self).__name__
                )
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
        oldest = next((_turn_of(key) for key in trajectory), "")
        left = {key: value for key, value in trajectory.items() if _turn_of(key) != oldest}
        if not left:
            has = "one tool call" if trajectory else "one tool call or none"
            raise ContextWindowExceededError(
                "The trajectory is too long so your prompt exceeded the context window, but the trajectory "
                f"cannot be truncated because it only has {has}."
            )
        return left

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs."""
        return inputs_of(self.signature)[0]

    def required_names(self) -> tuple[str, ...]:
        """Those of them that must be given."""
        return inputs_of(self.signature)[1]

    def output_names(self) -> tuple[str, ...]:
        """The trajectory, and what is written at the end."""
        return ("trajectory", "reasoning", *self.signature.output_fields)


def _turn_of(key: str) -> str:
    return key.rpartition("_")[2]


def _shown(trajectory: Mapping[str, Any]) -> str:
    """The trajectory as text; later lines are set in, so that no value passes for another entry."""
    lines = [f"{name}: {observed(value)}".replace("\n", "\n  ") for name, value in trajectory.items()]
    return "\n".join(lines) or "(no turn so far)"
