"""What a worker process is told of a program of DSPy's, which it makes anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from dspy_stream.errors import ConfigurationError
from dspy_stream.interop import describe

__all__ = ["checked", "told"]


def told(program: Any, label: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of a program, the options of its predictors, and digests of their fields.

    Raises:
        ConfigurationError: a predictor has a model of its own, which a worker could not ask, or options
            that are no JSON.
    """
    configs = {}
    for name, part in program.named_predictors():
        if part.lm is not None:
            raise ConfigurationError(
                f"predictor {name!r} of {label} has a model of its own, which a worker process "
                "cannot ask; give the model to the flow, or use isolation='thread'"
            )
        try:
            configs[name] = orjson.loads(orjson.dumps(getattr(part, "config", None) or {}))
        except TypeError as error:
            raise ConfigurationError(
                f"predictor {name!r} of {label} has options that are no JSON, and cannot be told to a worker "
                f"process: {error}; use isolation='thread'"
            ) from None
    # Demos of older versions are still Examples here.
    plain = orjson.loads(orjson.dumps(state, default=lambda value: value.toDict()))
    return {"state": plain, "configs": configs, "contracts": _contracts(program)}


def checked(program: Any, label: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The state that a worker's program is to load.

    Raises:
        ConfigurationError: a predictor has other fields here, so that its prompts would be others.
    """
    here = _contracts(program)
    for name, theirs in said["contracts"].items():
        if here.get(name) != theirs:
            raise ConfigurationError(
                f"predictor {name!r} of {label} has another signature in the program of this run than the "
                "one that a worker process made: fields that are changed after the program was made do not "
                "go along. Change them in the class or factory that makes it, or use isolation='thread'"
            )
    state: dict[str, Any] = said["state"]
    return state


def _contracts(program: Any) -> dict[str, str]:
    found = {name: describe.fields_of(part.signature) for name, part in program.named_predictors()}
    return {name: hashlib.sha256(orjson.dumps(fields)).hexdigest() for name, fields in found.items()}
