"""The types of what modules put into a record, for outputs that come back as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dspy_stream.modules.module import Module
from dspy_stream.program import kinds

__all__ = ["learn_kinds", "under", "validators_of"]


def learn_kinds(module: Module) -> None:
    """Note the classes that a module names, by which its values are found again when they come back."""
    for _, part in module.named_sub_modules():
        kind: Any = type(part)
        for code in (kind.forward, getattr(kind, "aforward", None), getattr(part, "fn", None)):
            if callable(code):
                kinds.learn_code(code)
    for predictor in module.predictors():
        kinds.learn(field.annotation for field in predictor.signature.fields.values())


def validators_of(module: Module) -> Iterator[tuple[str, Any]]:
    """The name and the validator of every output whose type is more than text, number or bool."""
    from dspy_stream.modules.compose import Composite  # which runs parts, and parts come back through here

    if isinstance(module, Composite):
        for part in module.parts():
            yield from under(validators_of(part.module), part.options.outputs)
            if part.options.fallback is not None:
                yield from under(validators_of(part.options.fallback), part.options.outputs)
        return
    own = getattr(type(module), "_output_validators", None)  # of a program of DSPy's, which has its own types
    if own is not None:
        yield from own(module)
        return
    prefix = getattr(module, "prefix", "")  # a traced call keeps its outputs apart
    for predictor in module.predictors():
        signature = predictor.signature
        for name, info in signature.output_fields.items():
            if info.annotation not in (str, int, float, bool):
                yield prefix + name, signature.validator(name)


def under(found: Iterator[tuple[str, Any]], outputs: Mapping[str, str] | None) -> Iterator[tuple[str, Any]]:
    """Those of the outputs that are kept, under the names they get."""
    if outputs is None:
        yield from found
        return
    for name, validator in found:
        if name in outputs:
            yield outputs[name], validator
