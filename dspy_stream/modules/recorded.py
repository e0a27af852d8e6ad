"""Recorded: a module whose answer carries the trace of its predictors' calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import copy_context
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.hosts import within
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import TRACE
from dspy_stream.modules.together import alone
from dspy_stream.modules.walking import named_parts
from dspy_stream.program import Example, Prediction
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.runtime import Steps, aperform, perform

__all__ = ["Recorded"]


class Recorded(Module):
    """A module that adds to its outputs how it came to them: what each predictor was asked and said.

    The trace is one more output, a list of ``{"predictor": name, "inputs": ..., "outputs": ...}`` in
    the order of the answers, as JSON data. In a flow it travels with its row like any other field.
    Parameters keep the names they have in the module.

    Args:
        module: the module to run.
        field: the name of the output.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> from dspy_stream.modules.predict import Predict
    >>> qa = Recorded(Predict("question -> answer"))
    >>> qa.set_lm(ScriptedLM({"2 + 2": {"answer": "4"}}))
    >>> qa(question="2 + 2").trace
    [{'predictor': 'self', 'inputs': {'question': '2 + 2'}, 'outputs': {'answer': '4'}}]
    """

    def __init__(self, module: Module, field: str = "trace") -> None:
        super().__init__()
        if not field.isidentifier():
            raise ConfigurationError(f"the trace cannot be named {field!r}: that is no name of a field")
        self.module = module
        self.field = field

    def forward(self, **inputs: Any) -> Any:
        """The module's outputs and the trace."""
        return perform(self.steps(inputs))

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if args:
            raise ValueError("Recorded takes its fields by name, not by position")
        return await aperform(self.steps(kwargs))

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The module's steps, with a trace of its own."""
        trace: list[Any] = []
        outer, context = TRACE.get(), copy_context()
        context.run(TRACE.set, trace)
        try:
            made = yield from alone(context.run(within, self.module, inputs), context=context)
        finally:
            if outer is not None:
                outer.extend(trace)
        if not isinstance(made, (Example, Mapping)):
            raise TypeError(f"{type(self.module).__name__} returned {type(made).__name__}, not a Prediction")
        fields = {**made, self.field: self._told(trace)}
        prediction = Prediction.of(fields)
        if isinstance(made, Prediction):
            prediction._completions = made._completions
        return prediction

    def _told(self, trace: list[Any]) -> list[dict[str, Any]]:
        from dspy_stream.modules.predict import Predict

        names = {id(part): name for name, part in named_parts(self.module, Predict)}
        return [
            {
                "predictor": names.get(id(predictor), "?"),
                "inputs": to_jsonable(dict(inputs), "a trace's inputs"),
                "outputs": to_jsonable(dict(outputs.items()), "a trace's outputs"),
            }
            for predictor, inputs, outputs in trace
        ]

    def input_names(self) -> tuple[str, ...] | None:
        """The module's."""
        return self.module.input_names()

    def required_names(self) -> tuple[str, ...]:
        """The module's."""
        return self.module.required_names()

    def output_names(self) -> tuple[str, ...] | None:
        """The module's, and the trace."""
        names = self.module.output_names()
        return None if names is None else (*names, self.field)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """The module's, under their own names."""
        return self.module.named_parameters()

    def named_sub_modules(
        self, type_: type[Any] | None = None, skip_compiled: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """The module's, under their own names."""
        return self.module.named_sub_modules(type_, skip_compiled)

    def __repr__(self) -> str:
        return f"Recorded({self.module!r})"
