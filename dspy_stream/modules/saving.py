"""What is learned, written to a file and read back: DSPy's JSON, and a form of our own.

DSPy's form matches fields by position, so that either side can read the other's files. The own form
matches them by name, has a version and a digest, and knows no other keys than its own.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.errors import ConfigurationError, DSPyStreamError
from dspy_stream.modules import saved
from dspy_stream.modules.program_of_thought import ProgramOfThought
from dspy_stream.modules.retrieve import Retrieve, saved_k
from dspy_stream.program.document import read_document, write_document
from dspy_stream.program.refusals import MissingPredictor, SavedStateError

if TYPE_CHECKING:
    from dspy_stream.modules.module import Module

__all__ = ["apply_state", "load", "restore", "save"]

FORMATS: Final = ("dspy", "dspy_stream")
_PROGRAM: Final = "program.json"


def save(module: Module, path: Path, *, whole: bool, form: str) -> None:
    """Write the state, or the whole program; the file is replaced whole or not at all.

    Raises:
        ConfigurationError: the path or the form is wrong, or the program holds what cannot be saved.
    """
    if form not in FORMATS:
        raise ConfigurationError(f"format={form!r}: there are {' and '.join(FORMATS)}")
    if whole:
        target = path if path.suffix == ".json" else path / _PROGRAM
        if path.suffix not in ("", ".json"):
            raise SavedStateError(
                f"`path` must point to a directory without a suffix, or end with `.json`: {path} does not; "
                "a program is saved as JSON, in a file .json or in a folder"
            )
        document = saved.dump(module, whole=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_document(target, document)
        return
    if path.suffix != ".json":
        raise SavedStateError(
            f"`path` must end with `.json`: {path} does not, and a state is saved as JSON, never as a pickle"
        )
    if form == "dspy_stream":
        write_document(path, saved.dump(module, whole=False))
    else:
        saved.by_name(module.named_parameters())
        write_document(path, {**module.dump_state(), "metadata": _metadata()})


def restore(module: Module, path: Path, *, unsafe: bool = False) -> None:
    """Read a state in either form into a module.

    Raises:
        ConfigurationError: the file is no state, or does not fit.
    """
    if path.suffix != ".json":
        raise SavedStateError(
            f"`path` must end with `.json`: {path} does not. Loading .pkl files can run arbitrary code, so "
            "pickles are never read: save the state as JSON where it was made"
        )
    document = read_document(path)
    try:
        if "format" in document:
            saved.load_into(module, document)
        else:
            module.load_state(document, allow_unsafe_lm_state=unsafe)
    except ConfigurationError as error:
        kind = MissingPredictor if isinstance(error, MissingPredictor) else SavedStateError
        raise kind(f"{path}: {error}") from error


def load(path: str | Path, allow_pickle: bool = False) -> Module:
    """A whole program that ``save(path, save_program=True)`` has written.

    It is built from the parts of this package by their names in a closed table; nothing in the file
    is imported, evaluated or unpickled, whatever ``allow_pickle`` says.

    Raises:
        ConfigurationError: the file is no such program, or was changed by hand.
    """
    del allow_pickle
    source = Path(path)
    if source.is_dir():
        if not (source / _PROGRAM).exists() and (source / "program.pkl").exists():
            raise SavedStateError(
                f"Loading with pickle is not allowed: {source} holds a pickle, which is never read; save its "
                "state as JSON where it was made, and load that into the program"
            )
        source = source / _PROGRAM
    document = read_document(source)
    try:
        return saved.build(document)
    except (DSPyStreamError, ValueError, TypeError) as error:
        raise SavedStateError(f"{source}: {error}") from error


def apply_state(module: Module, state: Mapping[str, Any], *, unsafe: bool = False) -> None:
    """Take over a state in DSPy's form; all of it or, on any error, nothing.

    Raises:
        ConfigurationError: names are missing or unknown, or a part does not fit.
    """
    parts = saved.by_name(module.named_parameters())
    given = {name: value for name, value in state.items() if name != "metadata"}
    _rename(module, given)
    searches = [(part, given.pop(name)) for name, part in _searches(module) if name in given]
    saved.compare_names(parts, given)
    changed = {}
    for name, part in parts.items():
        try:
            changed[name] = part.with_state(given[name], allow_unsafe_lm_state=unsafe)
        except (ConfigurationError, ValueError, TypeError, KeyError, AttributeError) as error:  # noqa: PERF203
            raise SavedStateError(f"predictor {name!r}: the saved state does not fit: {error}") from error
    wanted = [(part, saved_k(value)) for part, value in searches]
    for name, part in parts.items():
        part.__dict__.update(changed[name].__dict__)
    for search, k in wanted:
        search.k = k


def _rename(module: Module, given: dict[str, Any]) -> None:
    """Give a part of ProgramOfThought that DSPy 2.6 named otherwise the name that it has now."""
    for name, _ in module.named_sub_modules(ProgramOfThought):
        path = "" if name == "self" else f"{name.removeprefix('self.')}."
        old, new = f"{path}generate_answer.predict", f"{path}generate_output.predict"
        if old in given and new not in given:
            given[new] = given.pop(old)


def _searches(module: Module) -> list[tuple[str, Retrieve]]:
    """What DSPy 2.6 saves beside predictors: how many passages a Retrieve takes."""
    return [(name.removeprefix("self."), part) for name, part in module.named_sub_modules(Retrieve)]


def _metadata() -> dict[str, Any]:
    from dspy_stream import __version__

    major, minor = platform.python_version_tuple()[:2]
    # DSPy compares every entry with its own, so that only what it knows may be among these.
    return {"dependency_versions": {"python": f"{major}.{minor}"}, "dspy_stream": __version__}
