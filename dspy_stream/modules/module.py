"""The base of everything callable with fields.

A subclass sets its parts in ``__init__`` and combines them in ``forward`` (plain synchronous
Python) or ``aforward``. In a script the module is called and answers; in a flow many rows run
through the same object at once, so ``forward`` keeps what belongs to a row in local variables.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from dspy_stream.errors import ConfigurationError
from dspy_stream.runtime import Steps, bridge, perform

if TYPE_CHECKING:
    from dspy_stream.lm.base import Model
    from dspy_stream.modules.predict import Predict

__all__ = ["Module"]

M = TypeVar("M", bound="Module")


class Module:
    """A program, or a part of one: called with fields, returns a :class:`Prediction`.

    >>> from dspy_stream.program import Prediction
    >>> class Shout(Module):
    ...     def forward(self, text):
    ...         return Prediction(loud=text.upper())
    >>> Shout()(text="hello").loud
    'HELLO'
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.__dict__.get("forward")):
            raise TypeError(f"{cls.__qualname__}.forward is a coroutine function; name it aforward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program and return its result; blocks until every model call is done.

        Inside a flow, or inside another module's ``forward``, it does not block the thread:
        other rows go on while this one waits.
        """
        if self._only_async():
            return perform(self._async_steps(args, kwargs))
        return self.forward(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program from a coroutine; a synchronous ``forward`` does not block the loop."""
        from dspy_stream.runtime import aperform

        if self._has_aforward():
            return await self.aforward(*args, **kwargs)
        return await aperform(bridge(self.forward, *args, **kwargs))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The program, in plain Python. Subclasses define this or ``aforward``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor aforward")

    async def aforward(self, *args: Any, **kwargs: Any) -> Any:
        """The program as a coroutine; preferred by ``acall`` and in flows where it is defined."""
        raise NotImplementedError(f"{type(self).__name__} defines no aforward")

    def _has_aforward(self) -> bool:
        return type(self).aforward is not Module.aforward

    def _only_async(self) -> bool:
        return self._has_aforward() and type(self).forward is Module.forward

    def _async_steps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Any]:
        result = yield self.aforward(*args, **kwargs)
        return result

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The program for one row as steps, for a driver; see :mod:`dspy_stream.runtime`."""
        if self._has_aforward():
            return self._async_steps((), inputs)
        return bridge(self.forward, **inputs)

    def input_names(self) -> tuple[str, ...] | None:
        """Names of the fields the program reads from a row; None where it takes them all."""
        target = self.aforward if self._has_aforward() else self.forward
        names = []
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                return None
            if parameter.kind is not parameter.VAR_POSITIONAL:
                names.append(parameter.name)
        return tuple(names)

    def required_names(self) -> tuple[str, ...]:
        """Names of the fields without which the program cannot run."""
        target = self.aforward if self._has_aforward() else self.forward
        return tuple(
            parameter.name
            for parameter in inspect.signature(target).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        )

    # -------------------------------------------------------------------------- walking the parts

    def named_sub_modules(self, type_: type[Any] | None = None) -> Iterator[tuple[str, Any]]:
        """This module and every module below it, with dotted names, in the order of definition.

        Lists, tuples and dicts are searched too: ``parts[0]``, ``parts['key']``. The top is named
        ``self``. A part that is reached twice is named once.
        """
        wanted = type_ if type_ is not None else Module
        seen: set[int] = set()
        queue: list[tuple[str, Any]] = [("self", self)]
        while queue:
            name, item = queue.pop(0)
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, wanted):
                yield name, item
            queue[:0] = _children(name, item)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Every part that can be learned, by name. A Predict itself is named ``self``.

        Parts that are frozen (``_compiled`` is true), other than this module, are left out.
        """
        from dspy_stream.modules.predict import Predict

        found: list[tuple[str, Any]] = []
        seen: set[int] = set()

        def visit(name: str, item: Any) -> None:
            if id(item) in seen:
                return
            seen.add(id(item))
            if isinstance(item, Predict):
                found.append((name, item))
                return
            if isinstance(item, Module) and item is not self and getattr(item, "_compiled", False):
                return
            for child_name, child in _children(name, item):
                visit(child_name, child)

        visit("self", self)
        return found

    def parameters(self) -> list[Any]:
        """The learnable parts, without their names."""
        return [part for _, part in self.named_parameters()]

    def named_predictors(self) -> list[tuple[str, Predict]]:
        """Every Predict below this module, by name."""
        from dspy_stream.modules.predict import Predict

        return [(name, part) for name, part in self.named_parameters() if isinstance(part, Predict)]

    def predictors(self) -> list[Predict]:
        """Every Predict below this module."""
        return [part for _, part in self.named_predictors()]

    def map_named_predictors(self: M, change: Callable[[Predict], Predict]) -> M:
        """Replace every predictor by ``change(predictor)``, in place, and return this module."""
        for name, predictor in self.named_predictors():
            _replace(self, name, change(predictor))
        return self

    def set_lm(self, lm: Model | str | None) -> None:
        """Let every predictor below use this model."""
        from dspy_stream.lm.base import resolve

        model = resolve(lm) if lm is not None else None
        for predictor in self.predictors():
            predictor.lm = model

    def get_lm(self) -> Model | None:
        """The one model that all predictors use.

        Raises:
            ValueError: they use several.
        """
        models = [predictor.lm for predictor in self.predictors()]
        if any(model != models[0] for model in models):
            raise ValueError("Multiple LMs are being used in the module.")
        return models[0] if models else None

    # ------------------------------------------------------------------------------------- copies

    def deepcopy(self: M) -> M:
        """A copy whose parts are copies too; what cannot be copied is shared."""
        made = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                made.__dict__[name] = value.deepcopy()
                continue
            try:
                made.__dict__[name] = copy.deepcopy(value)
            except Exception:  # noqa: BLE001 - arbitrary user objects: a client or a lock refuses in its own way
                made.__dict__[name] = value
        return made

    def reset_copy(self: M) -> M:
        """A copy without what was learned: no demos, no traces, no model of its own."""
        made = self.deepcopy()
        for predictor in made.predictors():
            predictor.reset()
        return made

    # --------------------------------------------------------------------------------- saved state

    def dump_state(self) -> dict[str, Any]:
        """The learnable state as JSON, by parameter name, in DSPy's layout."""
        return {name: part.dump_state() for name, part in self.named_parameters()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state; all of it or, on any error, nothing.

        Raises:
            ConfigurationError: names are missing or unknown, or a part does not fit.
        """
        parts = dict(self.named_parameters())
        given = {name: value for name, value in state.items() if name != "metadata"}
        if missing := sorted(set(parts) - set(given)):
            raise ConfigurationError(f"the state has no predictor {missing[0]!r}; it has: {', '.join(given)}")
        if unknown := sorted(set(given) - set(parts)):
            raise ConfigurationError(
                f"this program has no predictor {unknown[0]!r}; it has: {', '.join(parts)}"
            )
        changed = {}
        for name, part in parts.items():
            try:
                changed[name] = part.with_state(given[name])
            except (ConfigurationError, ValueError, TypeError, KeyError, AttributeError) as error:  # noqa: PERF203
                raise ConfigurationError(
                    f"predictor {name!r}: the saved state does not fit: {error}"
                ) from error
        for name, part in parts.items():
            part.__dict__.update(changed[name].__dict__)

    def save(self, path: str | Path, save_program: bool = False) -> None:
        """Write the learnable state as JSON; the file is replaced whole or not at all.

        Raises:
            ConfigurationError: the name does not end in ``.json``. Pickles are not written.
        """
        target = Path(path)
        if save_program or target.suffix != ".json":
            raise ConfigurationError(f"{target}: a state is saved as JSON; give a name that ends in .json")
        data = orjson.dumps(
            {**self.dump_state(), "metadata": _metadata()},
            option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS,
        )
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(data)
        part.replace(target)

    def load(self, path: str | Path) -> None:
        """Read a state written by :meth:`save` or by DSPy.

        Raises:
            ConfigurationError: the file is not such a state, or does not fit this program.
        """
        source = Path(path)
        if source.suffix != ".json":
            raise ConfigurationError(f"{source}: only JSON states are read, never pickles")
        try:
            state = orjson.loads(source.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"cannot read {source}: {error.strerror}") from None
        except orjson.JSONDecodeError as error:
            raise ConfigurationError(f"{source} is not JSON: {error}") from None
        if not isinstance(state, dict):
            raise ConfigurationError(f"{source} is not a saved state: the top is not an object")
        self.load_state(state)

    def __repr__(self) -> str:
        parts = [f"{name} = {part!r}" for name, part in self.named_predictors()]
        return "\n".join(parts) if parts else f"{type(self).__name__}()"


def _children(name: str, item: Any) -> list[tuple[str, Any]]:
    prefix = "" if name == "self" else f"{name}."
    if isinstance(item, Module):
        return [(f"{prefix}{key}", value) for key, value in item.__dict__.items() if _holds_modules(value)]
    if isinstance(item, (list, tuple)):
        return [(f"{name}[{index}]", value) for index, value in enumerate(item)]
    if isinstance(item, dict):
        return [(f"{name}[{key!r}]", value) for key, value in item.items()]
    return []


def _holds_modules(value: Any) -> bool:
    if isinstance(value, Module):
        return True
    if isinstance(value, (list, tuple)):
        return any(isinstance(part, Module) for part in value)
    return isinstance(value, dict) and any(isinstance(part, Module) for part in value.values())


def _replace(root: Module, name: str, new: Any) -> None:
    """Put ``new`` where ``name`` points, walking the same containers that made the name."""
    target = dict(root.named_parameters())[name]
    if target is root:
        raise ConfigurationError("a predictor cannot replace itself; wrap it in a module")
    seen: set[int] = set()

    def visit(item: Any) -> bool:
        if id(item) in seen:
            return False
        seen.add(id(item))
        if isinstance(item, Module):
            slots: Any = item.__dict__.items()
        elif isinstance(item, dict):
            slots = item.items()
        elif isinstance(item, list):
            slots = enumerate(item)
        else:
            return False
        for key, value in list(slots):
            if value is target:
                if isinstance(item, Module):
                    setattr(item, key, new)
                else:
                    item[key] = new
                return True
            if isinstance(value, tuple) and target in value:
                changed = tuple(new if part is target else part for part in value)
                if isinstance(item, Module):
                    setattr(item, key, changed)
                else:
                    item[key] = changed
                return True
            if visit(value):
                return True
        return False

    visit(root)


def _metadata() -> dict[str, Any]:
    import platform

    from dspy_stream import __version__

    major, minor = platform.python_version_tuple()[:2]
    return {"dependency_versions": {"python": f"{major}.{minor}", "dspy_stream": __version__}}
