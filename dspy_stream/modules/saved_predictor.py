"""One predictor's state in DSPy's JSON: what it may hold, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.base import LM, Model
from dspy_stream.lm.saved import LM_CLASSES
from dspy_stream.program import Signature

__all__ = ["PredictorState", "read_state"]

_KNOWN: Final = ("traces", "train", "demos", "signature", "fields", "lm", "metadata")
# What a demo holds beside the fields of the signature.
_BESIDE: Final = ("augmented", "dspy_uuid", "dspy_split")


class PredictorState(NamedTuple):
    """What a state says: the signature as it was learned, the demos, and the model if there is one."""

    signature: type[Signature]
    demos: list[dict[str, Any]]
    lm: Model | None


def read_state(state: Any, signature: type[Signature], *, servers: bool = False) -> PredictorState:
    """A saved state for a predictor of this signature.

    Args:
        servers: whether the file may say to which server the model's calls go.

    Raises:
        ValueError: the state is none, or is of another predictor.
        ConfigurationError: it holds what is not read from files.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"it is {type(state).__name__}, not an object")
    if "extended_signature" in state:
        raise ValueError("it was saved by DSPy 2.5 or before; load and save it with DSPy 2.6")
    if unknown := [key for key in state if key not in _KNOWN]:
        raise ValueError(f"it has the unknown key {str(unknown[0])[:60]!r}; known are {', '.join(_KNOWN)}")
    if "signature" not in state:
        raise ValueError("it has no 'signature'")
    if state.get("fields"):
        raise ValueError("it has 'fields', the learned thresholds of decision types, which are not supported")
    demos = state.get("demos", [])
    if not isinstance(demos, list) or not all(isinstance(demo, dict) for demo in demos):
        raise ValueError("'demos' is not a list of objects")
    made = signature.load_state(state["signature"])
    _fits(demos, signature)
    lm = state.get("lm")
    return PredictorState(made, demos, _model(lm, servers=servers) if lm is not None else None)


def _fits(demos: Sequence[Mapping[str, Any]], signature: type[Signature]) -> None:
    """Refuse demos that a teacher made for fields of other names."""
    for number, demo in enumerate(demos, 1):
        if demo.get("augmented") is not True:
            continue
        missing = [name for name in signature.fields if name not in demo and not signature.may_omit(name)]
        foreign = [name for name in demo if name not in signature.fields and name not in _BESIDE]
        if missing and foreign:
            raise ValueError(
                f"demo {number} has the field {foreign[0]!r} where the signature has {missing[0]!r}: "
                "a field was renamed, or the state is of another program"
            )


def _model(state: Any, *, servers: bool) -> Model:
    if not isinstance(state, Mapping):
        raise ValueError(f"'lm' is {type(state).__name__}, not an object")
    kind = state.get("_dspy_lm_class")
    if kind not in LM_CLASSES:
        raise ConfigurationError(
            f"'lm' is of the class {str(kind)[:80]!r}; classes are never imported from files: remove it, "
            "and name the model in code"
        )
    for engine in ("engine", "async_engine"):
        if not isinstance(state.get(engine), (str, type(None))):
            raise ConfigurationError(f"'lm' has an {engine} of its own, which is never taken from files")
    return LM.load_state(state, servers=servers)
