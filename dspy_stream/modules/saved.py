"""The saved form of our own: closed, versioned JSON that names its fields and carries a digest."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.base import LM, Model
from dspy_stream.lm.kwargs import check_options
from dspy_stream.lm.saved import ENDPOINTS, LM_CLASSES, NOT_OPTIONS
from dspy_stream.program import PredictorParameters
from dspy_stream.program.document import closed
from dspy_stream.program.jsonable import canonical
from dspy_stream.program.refusals import MissingPredictor
from dspy_stream.program.saved_signature import fit_signature, saved_signature

if TYPE_CHECKING:
    from dspy_stream.modules.module import Module
    from dspy_stream.modules.predict import Predict

__all__ = ["build", "by_name", "compare_names", "dump", "load_into"]

_T = TypeVar("_T")

FORMAT: Final = "dspy_stream"
VERSION: Final = 1
_KEYS: Final = ("format", "version", "written_by", "digest", "predictors")
_PREDICTOR: Final = ("signature", "demos", "config", "lm")
_LM: Final = ("model", "model_type", "cache", "options")
_LM_MORE: Final = ("num_retries", "rollout_id", "own_server", "class", "fallbacks")
# Settings of a model that decide where a call goes, or how it is made, but not what is asked.
_NO_OPTIONS: Final = (
    *(*ENDPOINTS, "health", "limits", "breaker", "callbacks", "capabilities", "prices", "timeout"),
    *("fallbacks", "engine", "provider"),
)
_MOST_DEMOS: Final = 10_000


def dump(module: Module, *, whole: bool) -> dict[str, Any]:
    """The document of a module: what was learned, and with ``whole`` the program itself.

    Raises:
        ConfigurationError: a part or a value cannot be saved; it is named.
    """
    from dspy_stream import __version__
    from dspy_stream.modules.blueprint import construct, describe

    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": __version__,
        "predictors": {name: _predictor(part) for name, part in by_name(module.named_predictors()).items()},
    }
    if whole:
        document["program"] = describe(module)
        _refuse_unlike(module, construct(document["program"]))
    return {**document, "digest": _digest(document)}


def load_into(module: Module, document: Mapping[str, Any]) -> None:
    """Take over what was learned; all of it or, on any error, nothing.

    Raises:
        ConfigurationError: the document is not of this form, was changed, or does not fit.
    """
    entries = _checked(document)["predictors"]
    parts = by_name(module.named_predictors())
    compare_names(parts, entries)
    changed = {name: _changed(part, entries[name], f"predictor {name!r}") for name, part in parts.items()}
    for name, part in parts.items():
        part.__dict__.update(changed[name].__dict__)


def build(document: Mapping[str, Any]) -> Module:
    """The program of a document, with what was learned.

    Raises:
        ConfigurationError: the document holds no program, or a part that is not known.
    """
    from dspy_stream.modules.blueprint import construct

    checked = _checked(document)
    if "program" not in checked:
        raise ConfigurationError("it is a state without its program: make the program in code and load() it")
    module = construct(checked["program"])
    load_into(module, document)
    return module


def compare_names(parts: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a state with other predictors than the program.

    Raises:
        MissingPredictor: one is missing, or unknown.
    """
    if missing := sorted(set(parts) - set(given)):
        raise MissingPredictor(f"the state has no predictor {missing[0]!r}; it has: {_listed(given)}")
    if unknown := sorted(set(given) - set(parts)):
        raise MissingPredictor(f"this program has no predictor {unknown[0]!r}; it has: {_listed(parts)}")


def by_name(parts: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Parts by their names, which is how a file tells them apart.

    Raises:
        ConfigurationError: two have the same.
    """
    made: dict[str, _T] = {}
    for name, part in parts:
        if name in made:
            raise ConfigurationError(
                f"two predictors have the name {name}, and a saved state could hold only one of them: give "
                "them keys that are not written alike, as 1 and '1' are"
            )
        made[name] = part
    return made


def _refuse_unlike(module: Module, made: Module) -> None:
    """Refuse a program that would not be the same when it is built again."""
    mine, theirs = by_name(module.named_predictors()), by_name(made.named_predictors())
    if missing := [name for name in theirs if name not in mine]:
        raise ConfigurationError(
            f"the predictor {missing[0]} is also another part of the program, or is frozen (`_compiled`), "
            "and a saved program keeps neither: give each part a copy of its own, module.deepcopy(), or "
            "save() the state without the program"
        )


def _listed(names: Mapping[str, Any]) -> str:
    shown = [str(name)[:60] for name in list(names)[:20]]
    return ", ".join(shown) or "none"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({k: v for k, v in document.items() if k != "digest"})).hexdigest()


def _checked(document: Mapping[str, Any]) -> Mapping[str, Any]:
    if document.get("format") != FORMAT:
        raise ConfigurationError(f"its format is {str(document.get('format'))[:60]!r}, not {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ConfigurationError(
            f"it is of version {repr(version)[:20]}, and this package reads version {VERSION}; "
            "a newer dspy_stream may have written it"
        )
    closed(document, _KEYS, "the saved program", optional=("program",))
    if not hmac.compare_digest(str(document["digest"]).encode(), _digest(document).encode()):
        raise ConfigurationError("it does not match its digest: it was damaged, or changed by hand")
    if not isinstance(document["predictors"], dict):
        raise ConfigurationError("`predictors` is an object of predictors by name")
    return document


def _predictor(part: Predict) -> dict[str, Any]:
    parameters = part.current_parameters()
    return {
        "signature": saved_signature(part.signature),
        "demos": part.dump_state()["demos"],
        "config": dict(parameters.config),
        "lm": _saved_lm(part.lm) if part.lm is not None else None,
    }


def _changed(part: Predict, entry: Any, where: str) -> Predict:
    entry = closed(entry, _PREDICTOR, where)
    demos, config = entry["demos"], entry["config"]
    if not isinstance(demos, list) or len(demos) > _MOST_DEMOS or not all(isinstance(d, dict) for d in demos):
        raise ConfigurationError(f"{where}: `demos` is a list of objects, at most {_MOST_DEMOS}")
    config = _options(config, f"{where}, config")
    made = part.deepcopy()
    made.signature = fit_signature(part.signature, entry["signature"], where)
    made.demos = [dict(demo) for demo in demos]
    made.config = dict(config)
    made.lm = _read_lm(entry["lm"], f"{where}, lm") if entry["lm"] is not None else part.lm
    return made


def _saved_lm(lm: Model | str) -> dict[str, Any]:
    """A model without its places: a file does not decide where a prompt is sent."""
    if isinstance(lm, str):
        return {"model": lm, "model_type": "chat", "cache": True, "options": {}}
    state = dict(lm.dump_state())
    kept: dict[str, Any] = {name: state.pop(name) for name in ("model", "model_type", "cache")}
    kept |= {name: state.pop(name) for name in ("num_retries", "rollout_id") if name in state}
    if any(state.get(name) for name in ENDPOINTS):
        kept["own_server"] = True
    if (kind := state.get("_dspy_lm_class")) not in LM_CLASSES:
        kept["class"] = kind
    if fallbacks := getattr(lm, "fallbacks", ()):
        kept["fallbacks"] = [_saved_lm(other) for other in fallbacks]
    options = {name: value for name, value in state.items() if name not in NOT_OPTIONS and value is not None}
    return {**kept, "options": dict(PredictorParameters.of(config=options).config)}


def _options(value: Any, where: str) -> dict[str, Any]:
    """Options of a call that a file may set: no secrets, no places, nothing that changes what is asked."""
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: an object is expected, not {type(value).__name__}")
    for name in value:
        if name.startswith(("api_", "_")) or name in _NO_OPTIONS:
            raise ConfigurationError(f"{where}: {name[:60]!r} is no option that a file may set")
    check_options(value)
    return dict(PredictorParameters.of(config=value).config)


def _read_lm(value: Any, where: str, *, fallback: bool = False) -> Model:
    value = closed(value, _LM, where, optional=_LM_MORE if not fallback else _LM_MORE[:-1])
    if not isinstance(value["model"], str) or not isinstance(value["options"], dict):
        raise ConfigurationError(f"{where}: `model` is a text and `options` an object")
    options = _options(value["options"], f"{where}, options")
    state: dict[str, Any] = {**options, **{name: value[name] for name in _LM if name != "options"}}
    state |= {name: value[name] for name in ("num_retries", "rollout_id") if name in value}
    if value.get("own_server"):
        state["endpoints"] = [None]  # it can be kept and shown, but not asked
    if "class" in value:  # likewise: it is a name, and never looked up
        state["_dspy_lm_class"] = str(value["class"])
    model = LM.load_state(state)
    others = value.get("fallbacks", [])
    if not isinstance(others, list) or len(others) > _MOST_FALLBACKS:
        raise ConfigurationError(f"{where}: `fallbacks` is a list of at most {_MOST_FALLBACKS} models")
    if others and isinstance(model, LM):
        model = model.copy(fallbacks=[_read_lm(other, where, fallback=True) for other in others])
    return model


_MOST_FALLBACKS: Final = 10
