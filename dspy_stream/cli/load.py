"""Loading a flow from a Python file: the one place where the package imports by name.

The file is the user's own code and is run as such. A file that others may write is refused.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import stat
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dspy_stream.errors import DSPyStreamError, FlowError, LMNotConfiguredError

__all__ = ["default_state_of", "load_flow", "load_named", "model_of"]


def load_flow(target: str) -> Any:
    """The flow in ``path.py`` or ``path.py:name``; the name is ``flow`` by default.

    Raises:
        FlowError: no such file, no such name, or it is no flow; or others may write the file.
    """
    path_text, _, name = target.partition(":") if not Path(target).exists() else (target, "", "")
    path = Path(path_text)
    if path.suffix != ".py" or not path.is_file():
        wanted = "give a Python file that defines `flow`, or path.py:name"
        raise FlowError(f"{target}: {wanted}; {_not_one(path)}")
    _check_owner(path)
    module = _execute(path.resolve())
    wanted = name or "flow"
    found = getattr(module, wanted, None)
    if found is None:
        raise FlowError(f"{path} defines no {wanted!r}, {_others(module, path, name)}")
    return _as_flow(found, path, wanted)


def _not_one(path: Path) -> str:
    """Why this is none, with the file that was probably meant."""
    if path.exists():
        return "this is a folder" if path.is_dir() else "the name of this one does not end in .py"
    beside = [str(path.parent / found.name) for found in sorted(path.parent.glob("*.py"))]
    near = get_close_matches(str(path.with_suffix(".py")), beside, n=1)
    return "there is no such file" + (f"; did you mean {near[0]}?" if near else "")


def _others(module: Any, path: Path, name: str) -> str:
    """What of the file could be run instead."""
    from dspy_stream.stream.flow import Flow
    from dspy_stream.stream.stream import Stream

    names = [each for each, value in vars(module).items() if isinstance(value, (Flow, Stream))]
    if not names:
        return "nor any other stream or flow to run"
    near = get_close_matches(name, names, n=1) or names
    return f"but {', '.join(names)}: dspy-stream run {path}:{near[0]}"


def _check_owner(path: Path) -> None:
    for part in (path.resolve(), path.resolve().parent):
        mode = part.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise FlowError(f"{part} can be written by everybody; its code is not run (chmod o-w {part})")


class _Fresh(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is. A cached compilation is taken for current by size and second, so
    that a quick edit would run, and be recorded, as the program before it."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _execute(path: Path) -> Any:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"flow_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except DSPyStreamError:
        raise
    except Exception as error:
        raise FlowError(f"{path.name} cannot be run: {_told(error, path)}") from error
    return module


def load_named(module: str, name: str, file: str | None) -> Any:
    """What is called ``name`` in a module of the user's, for a worker process of one of its parts.

    The module is imported where it can be, and run from its file where not, as a script is.

    Raises:
        FlowError: there is no such module or name, or others may write the file.
    """
    if file is not None:
        _check_owner(Path(file))
    found: Any = _imported(module, file)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise FlowError(f"{module} has no {name!r}") from None
    return found


def _imported(module: str, file: str | None) -> Any:
    try:
        spec = importlib.util.find_spec(module) if module != "__main__" else None
    except (ImportError, ValueError):
        spec = None
    if spec is not None and (
        file is None or (spec.origin and os.path.realpath(spec.origin) == os.path.realpath(file))
    ):
        return importlib.import_module(module)
    if file is None:
        raise FlowError(f"there is no module {module!r}")
    return _execute(Path(file))


def _told(error: Exception, path: Path) -> str:
    """An exception of the flow's file in one line, with its place in that file."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {frames[-1].lineno}: " if frames else ""
    return f"{where}{type(error).__name__}: {error}"


def _as_flow(found: Any, path: Path, wanted: str) -> Any:
    from dspy_stream.stream.flow import Flow
    from dspy_stream.stream.stream import Stream

    if isinstance(found, Stream):
        found = found.compile()
    if not isinstance(found, Flow) or found.spec is None:
        raise FlowError(f"{wanted!r} in {path} is {type(found).__name__}, not a Stream or a Flow")
    return found.named(path.stem) if found.spec.name == "flow" else found


def model_of(name: str | None, api_base: str | None) -> Any:
    """The model that ``--lm`` and ``--api-base`` name.

    Raises:
        LMNotConfiguredError: a server without a model's name.
    """
    if api_base is None:
        return name
    if name is None:
        raise LMNotConfiguredError("--api-base needs --lm with the model's name, such as openai/my-model")
    from dspy_stream.lm import LM

    return LM(name, api_base=api_base)


def default_state_of(flow: Any) -> Path:
    """The folder that a run of this flow uses when it is given none."""
    from dspy_stream.stream.flow import default_state

    return default_state(flow.spec.name)
