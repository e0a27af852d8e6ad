"""What a part's outputs are where it has failed and the row is to go on: ``on_error="default"``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.program import Signature

__all__ = ["check_defaults", "default_outputs"]


def default_outputs(module: Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A value for every output of a module, without asking it; new objects at every call.

    It is the one in ``given``, else the default that the signature declares, else None.

    >>> from dspy_stream.modules.predict import Predict
    >>> default_outputs(Predict("text -> intent, urgency: int = 3"), {"intent": "unknown"})
    {'intent': 'unknown', 'urgency': 3}
    """
    signatures = _signatures(module)
    names = module.output_names()
    made: dict[str, Any] = {}
    for name in names if names is not None else (given or {}):
        if given is not None and name in given:
            made[name] = deepcopy(given[name])
            continue
        signature = signatures.get(name)
        declared = signature is not None and signature.may_omit(name)
        made[name] = signature.default_of(name) if declared else None  # type: ignore[union-attr]
    return made


def check_defaults(
    name: str, module: Module, given: Mapping[str, Any] | None, wanted: Iterable[str] | None = None
) -> None:
    """Find out before any row whether a part can go on without its module.

    ``wanted`` are those of its outputs that go into the record, where that was said.

    Raises:
        ConfigurationError: a default for what is no output or of the wrong type, or none for an output
            that is wanted; or nobody says what the outputs are, as for a function or a ``forward`` of the
            user's own.
    """
    names = module.output_names()
    for output in wanted or ():
        if output not in (names if names is not None else (given or ())):
            known = (
                f"its outputs are {', '.join(names)}"
                if names is not None
                else "defaults= names no value for it"
            )
            raise ConfigurationError(f"{name}: outputs= names {output!r}, but {known}")
    if names is None:
        if not given:
            raise ConfigurationError(
                f"{name}: what it returns is not known before it is called, so on_error='default' needs "
                "defaults={'output': value}, with every output"
            )
        return
    signatures = _signatures(module)
    for output, value in (given or {}).items():
        if output not in names:
            raise ConfigurationError(
                f"{name}: defaults name {output!r}, which is no output of it; {', '.join(names)} are"
            )
        if value is not None and output in signatures:
            _check_type(name, output, value, signatures[output])


def _check_type(name: str, output: str, value: Any, signature: type[Signature]) -> None:
    try:
        signature.validator(output).validate_python(value, strict=True)
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"{name}: the default {value!r} of {output!r} is none: {why}") from error


def _signatures(module: Module) -> dict[str, type[Signature]]:
    """The signature that makes each output; the last predictor's where several have one of that name."""
    return {
        output: predictor.signature
        for predictor in module.predictors()
        for output in predictor.signature.output_fields
    }
