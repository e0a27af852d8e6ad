"""Read a plain ``forward`` without running it: is it a straight line of calls of its own predictors?

Nothing is run or guessed. Such a ``forward`` assigns names, calls its predictors by keyword, reads fields
of what they returned, makes texts, lists and predictions of them, and returns; whatever else it has is
named with its line. What a call is given is then known as an expression over the row's values and the
other calls' outputs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.format import Format
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.trace import is_leaf, shortened
from dspy_stream.program import Example, Prediction

__all__ = ["Planned", "Reading", "needed", "read", "value_of"]


class Const(NamedTuple):
    """A value that stands in the code, or in a plain attribute of the module."""

    value: Any


class Given(NamedTuple):
    """An input of the row."""

    name: str


class Field(NamedTuple):
    """A field of what a call returned."""

    call: int
    name: str
    item: bool


class Items(NamedTuple):
    """A list, or a tuple."""

    kind: type[Any]
    items: tuple[Any, ...]


class Pairs(NamedTuple):
    """A dict."""

    pairs: tuple[tuple[Any, Any], ...]


class Text(NamedTuple):
    """An f-string: its pieces, with conversion and format of those that are values."""

    pieces: tuple[tuple[Any, int, str], ...]


class _Whole(NamedTuple):
    """What a call returned, or a prediction made here: not to be given to a call."""

    call: int | None


class Planned(NamedTuple):
    """A call that every row makes: of which attribute, and what it is given."""

    name: str
    part: Module
    arguments: Mapping[str, Any]

    def needs(self) -> frozenset[int]:
        """The numbers of the calls whose outputs it is given."""
        return frozenset(number for made in self.arguments.values() for number in needed(made))


@dataclass(frozen=True)
class Reading:
    """The calls of a ``forward``, in its order; or, where it is no straight line, ``why`` not."""

    calls: tuple[Planned, ...] = ()
    why: str = ""

    def groups(self) -> list[list[str]]:
        """Names of the predictors that can be asked at the same time, wave by wave."""
        depth: list[int] = []
        for call in self.calls:
            depth.append(1 + max((depth[number] for number in call.needs()), default=-1))
        asked = [(c.name, d) for c, d in zip(self.calls, depth, strict=True) if type(c.part) is not Format]
        return [[name for name, at in asked if at == wave] for wave in sorted(set(depth))]


_PARTS: Final = (Predict, ChainOfThought, Format)
_PLAIN: Final = (str, int, float, bool, bytes, type(None))
_SAYS: Final[Mapping[type[ast.AST], str]] = {
    **dict.fromkeys((ast.If, ast.IfExp, ast.Match, ast.BoolOp, ast.Compare, ast.Assert), "decides by data"),
    **dict.fromkeys((ast.For, ast.While, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp), "loops"),
    **dict.fromkeys((ast.Try, ast.With, ast.Raise), "has a `try`, a `with` or a `raise`"),
    **dict.fromkeys((ast.BinOp, ast.UnaryOp), "computes with values"),
}


class _Stop(Exception):
    """The ``forward`` has something that is not understood."""

    def __init__(self, node: ast.AST, does: str) -> None:
        super().__init__(does)
        self.line = getattr(node, "lineno", 1)


def read(module: Module) -> Reading | None:
    """The calls of a module's own ``forward``; None where there is nothing to be run at the same time.

    >>> from dspy_stream.modules.predict import Predict
    >>> read(Predict("text -> a")) is None
    True
    """
    forward = type(module).forward
    plain = type(module).steps is Module.steps and not module._has_aforward() and not is_leaf(module)
    if not plain or len(module.predictors()) < 2 or not inspect.isfunction(forward):
        return None
    code = inspect.unwrap(forward).__code__
    file, first = code.co_filename, code.co_firstlineno
    try:
        looks = type(module).__getattribute__ is not object.__getattribute__
        if module._own_call or looks:
            own = f"{type(module).__name__} has a {'__getattribute__' if looks else '__call__'} of its own"
            return Reading(why=f"{shortened(file)}:{first}: {own}")
        if hasattr(forward, "__wrapped__") or "forward" in module.__dict__:
            return Reading(why=f"{shortened(file)}:{first}: its forward is wrapped in another function")
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            return Reading(why=f"{shortened(file)}:{first}: its forward is no plain function")
        return Reading(tuple(_Reader(module, forward, tree).calls()))
    except _Stop as stop:
        return Reading(why=f"{shortened(file)}:{first + stop.line - 1}: {stop}")
    except (OSError, SyntaxError, TypeError):
        return Reading(why=f"{shortened(file)}:{first}: its source cannot be read")


class _Reader:
    def __init__(self, module: Module, forward: Any, tree: ast.FunctionDef) -> None:
        self._module = module
        self._globals = forward.__globals__
        self._tree = tree
        self._calls: list[Planned] = []
        given = tree.args
        if given.posonlyargs or given.vararg or given.kwarg or not given.args:
            raise _Stop(tree, "takes inputs that have no names")
        if tree.decorator_list:
            raise _Stop(tree, "has a decorator")
        self._self, *names = (argument.arg for argument in (*given.args, *given.kwonlyargs))
        self._known: dict[str, Any] = {name: Given(name) for name in names}

    def calls(self) -> list[Planned]:
        """The calls in their order."""
        *statements, last = self._tree.body
        for statement in statements:
            self._statement(statement)
        if not isinstance(last, ast.Return) or last.value is None:
            self._statement(last)
            raise _Stop(last, "does not end with what it returns")
        self._expression(last.value)
        return self._calls

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Call)):
            self._expression(node.value)
        elif isinstance(node, ast.Assign):
            made = self._expression(node.value)
            for target in node.targets:
                self._assign(target, made)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self._expression(node.value))
        elif not isinstance(node, ast.Pass):
            self._stop(node)

    def _assign(self, target: ast.expr, made: Any) -> None:
        if isinstance(target, ast.Name):
            self._known[target.id] = made
        elif isinstance(target, ast.Tuple) and type(made) is Items and len(target.elts) == len(made.items):
            for inner, item in zip(target.elts, made.items, strict=True):
                self._assign(inner, item)
        else:
            raise _Stop(target, "assigns to something other than a name")

    def _stop(self, node: ast.AST) -> NoReturn:
        raise _Stop(node, _SAYS.get(type(node), f"has what is not followed: {type(node).__name__}"))

    # ---------------------------------------------------------------------------------- expressions

    def _expression(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return Const(node.value)
        if isinstance(node, ast.Name):
            if node.id not in self._known:
                raise _Stop(node, f"uses {node.id}, which is no value of the row's")
            return self._known[node.id]
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self._read(node)
        if isinstance(node, (ast.List, ast.Tuple)):
            kind: type[Any] = list if isinstance(node, ast.List) else tuple
            return Items(kind, tuple(self._expression(item) for item in node.elts))
        if isinstance(node, ast.Dict) and None not in node.keys:
            keys = [self._expression(key) for key in node.keys if key is not None]
            if not all(type(key) is Const for key in keys):
                raise _Stop(node, "has a dict whose keys are values of the row's")
            return Pairs(tuple(zip(keys, map(self._expression, node.values), strict=True)))
        if isinstance(node, ast.JoinedStr):
            return Text(tuple(self._piece(piece) for piece in node.values))
        if isinstance(node, ast.Call):
            return self._call(node)
        return self._stop(node)

    def _piece(self, node: ast.expr) -> tuple[Any, int, str]:
        if isinstance(node, ast.Constant):
            return Const(node.value), -1, ""
        assert isinstance(node, ast.FormattedValue)
        form = node.format_spec
        if form is None:
            return self._expression(node.value), node.conversion, ""
        if isinstance(form, ast.JoinedStr) and all(isinstance(piece, ast.Constant) for piece in form.values):
            text = "".join(str(piece.value) for piece in form.values if isinstance(piece, ast.Constant))
            return self._expression(node.value), node.conversion, text
        raise _Stop(node, "formats by data")

    def _read(self, node: ast.Attribute | ast.Subscript) -> Any:
        if isinstance(node, ast.Attribute) and self._is_self(node.value):
            value = self._module.__dict__.get(node.attr, self)
            if type(value) not in _PLAIN or isinstance(
                getattr(type(self._module), node.attr, None), property
            ):
                raise _Stop(node, f"uses self.{node.attr}, which is neither a call nor a plain value")
            return Const(value)
        of = self._expression(node.value)
        if type(of) is not _Whole or of.call is None:
            raise _Stop(node, "takes a value apart that is not what a call returned")
        if isinstance(node, ast.Subscript):
            if isinstance(node.slice, ast.Constant) and type(node.slice.value) is str:
                return Field(of.call, node.slice.value, item=True)
            raise _Stop(node, "takes an item that is not a field's name")
        if node.attr.startswith("_") or hasattr(Prediction, node.attr):
            raise _Stop(node, f"uses {node.attr!r} of a prediction")
        return Field(of.call, node.attr, item=False)

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._self and node.id not in self._known

    def _call(self, node: ast.Call) -> _Whole:
        func = node.func
        name = func.attr if isinstance(func, ast.Attribute) and self._is_self(func.value) else None
        if name is None and self._made(func) not in (Prediction, Example, dict):
            raise _Stop(node, f"calls {ast.unparse(func)}, which is no predictor of its own")
        part = self._part(node, name) if name is not None else None
        names = [keyword.arg for keyword in node.keywords]
        if node.args or None in names:
            raise _Stop(node, "calls with arguments that have no names here")
        arguments = {str(keyword.arg): self._expression(keyword.value) for keyword in node.keywords}
        if name is None or part is None:
            return _Whole(None)
        known, required = part.input_names() or (), part.required_names()
        if set(arguments) - set(known) or set(required) - set(arguments):
            raise _Stop(node, f"gives self.{name} other fields than it reads")
        if any(type(made) is _Whole for made in arguments.values()):
            raise _Stop(node, f"gives self.{name} a whole prediction")
        self._calls.append(Planned(name, part, arguments))
        return _Whole(len(self._calls) - 1)

    def _part(self, node: ast.Call, name: str) -> Module:
        part = self._module.__dict__.get(name)
        whole = type(part) is ChainOfThought and type(part.predict) is not Predict
        if type(part) not in _PARTS or whole or "forward" in vars(part):
            raise _Stop(node, f"calls self.{name}, which is not simply a predictor")
        assert isinstance(part, Module)
        return part

    def _made(self, func: ast.expr) -> Any:
        """The class that is called, where it can be told from the globals alone."""
        if isinstance(func, ast.Name) and func.id not in self._known:
            return self._globals.get(func.id, dict if func.id == "dict" else None)
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            found = self._globals.get(func.value.id) if func.value.id not in self._known else None
            return (
                vars(found).get(func.attr) or getattr(found, func.attr) if inspect.ismodule(found) else None
            )
        return None


# ------------------------------------------------------------------------------------- expressions


def needed(made: Any) -> Iterator[int]:
    """The numbers of the calls that an expression reads."""
    if type(made) is Field:
        yield made.call
    for inner in _inside(made):
        yield from needed(inner)


def _inside(made: Any) -> Iterator[Any]:
    if type(made) is Items:
        yield from made.items
    elif type(made) is Pairs:
        for pair in made.pairs:
            yield from pair
    elif type(made) is Text:
        yield from (piece for piece, _, _ in made.pieces)


def value_of(made: Any, inputs: Mapping[str, Any], outputs: Mapping[int, Any]) -> Any:
    """What an expression is for one row.

    Raises:
        Exception: whatever the code itself would raise, such as for a field that was not made.
    """
    kind = type(made)
    if kind is Const:
        return made.value
    if kind is Given:
        return inputs[made.name]
    if kind is Field:
        found = outputs[made.call]
        return found[made.name] if made.item else getattr(found, made.name)
    if kind is Items:
        return made.kind(value_of(item, inputs, outputs) for item in made.items)
    if kind is Pairs:
        return {key.value: value_of(item, inputs, outputs) for key, item in made.pairs}
    return "".join(_formatted(value_of(m, inputs, outputs), how, form) for m, how, form in made.pieces)


_CONVERT: Final[Mapping[int, Callable[[Any], str]]] = {115: str, 114: repr, 97: ascii}


def _formatted(value: Any, conversion: int, form: str) -> str:
    return format(_CONVERT[conversion](value) if conversion in _CONVERT else value, form)
