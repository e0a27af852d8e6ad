"""How a worker process makes the module of a part: from the user's own code, by name.

The name comes from the user's program, never from data: it is that of a function or class given as
``factory=``, of the module's own class, or of the function that is the part. The worker imports the
file that holds it, so what stands at the top of the file runs there as well: put what starts a flow
under ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module

__all__ = ["Origin", "origin_of"]

_HELP = (
    "give isolation='process' a factory: a function or class at the top of a file of yours that makes "
    "the module, factory=make_it, or its name, factory='package.module:make_it'"
)


@dataclass(frozen=True)
class Origin:
    """Where to find what makes a module: ``name`` in ``module``, whose file is ``file`` where known.

    Without ``makes`` it is the part itself, a function. A program of this package's own parts has no name,
    and a ``blueprint`` instead.
    """

    module: str
    name: str
    file: str | None = None
    makes: bool = True
    blueprint: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """For the start of a worker."""
        return asdict(self)


def origin_of(module: Module, factory: Any, who: str) -> Origin:
    """How a worker can make the module.

    Without a factory it is made from its class, where that needs no arguments and was given none, is the
    function that it applies, or is made of parts of this package that hold plain values only. What has
    been learned (instructions, demos, settings of calls) goes along in either case; other attributes that
    were changed after it was made do not.

    Raises:
        ConfigurationError: nobody says how, or what says it could not be found by its name.
    """
    if isinstance(factory, str):
        return _named(factory, who)
    if factory is not None:
        return _found(factory, who)
    fn = getattr(module, "fn", None)
    if callable(fn) and type(module).__module__.startswith("dspy_stream."):
        return replace(_found(fn, who), makes=False)
    kind, may_default = type(module), True
    if kind.__module__.startswith("dspy_stream.interop."):  # it is one of DSPy's as it is
        kind, may_default = type(module.program), False  # type: ignore[attr-defined]
    if kind.__module__.startswith("dspy_stream."):
        return Origin("", "", makes=False, blueprint=_described(module, who))
    foreign = kind.__module__.startswith("dspy.")
    if foreign or module._with_arguments or not _needs_nothing(kind, may_default=may_default):
        raise ConfigurationError(f"{who}: a worker process cannot tell how {kind.__name__} was made; {_HELP}")
    return _found(kind, who)


def _described(module: Module, who: str) -> dict[str, Any]:
    from dspy_stream.modules.blueprint import describe  # which knows of parts that run here

    try:
        return describe(module)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{who}: a worker process cannot tell how {type(module).__name__} was made ({error}); {_HELP}"
        ) from error


def _needs_nothing(kind: type, *, may_default: bool) -> bool:
    """True for a class that can be made without arguments; ``may_default``: none were given that it takes."""
    _, *takes = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return all(
        each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        or each.name == "callbacks"
        or (may_default and each.default is not each.empty)
        for each in takes
    )


def _named(text: str, who: str) -> Origin:
    place, colon, name = text.rpartition(":")
    if not colon or not name.replace(".", "").isidentifier():
        raise ConfigurationError(f"{who}: factory={text!r} is not 'package.module:name' or 'file.py:name'")
    if place.endswith(".py"):
        path = os.path.abspath(place)
        if not os.path.isfile(path):
            raise ConfigurationError(f"{who}: factory={text!r}: there is no such file")
        return Origin(os.path.basename(place)[: -len(".py")], name, path)
    return Origin(place, name)


def _found(value: Any, who: str) -> Origin:
    name, home = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
    holder = sys.modules.get(home) if home is not None else None
    found: Any = holder
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    if name is None or holder is None or found is not value:
        what = name or repr(value)
        raise ConfigurationError(
            f"{who}: {what} has no name at the top of a file by which a worker process would find it; {_HELP}"
        )
    file = getattr(holder, "__file__", None)
    if home == "__main__":
        spec = getattr(holder, "__spec__", None)
        if spec is not None:  # it was started by `python -m`
            return Origin(spec.name, name, file)
        if file is None:
            raise ConfigurationError(
                f"{who}: {name} was typed in, and a worker process would not find it; put it into a file"
            )
    return Origin(str(home), name, os.path.abspath(file) if file is not None else None)
