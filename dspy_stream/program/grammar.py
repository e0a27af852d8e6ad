"""Types as they are written in signature strings.

The text is parsed to a tree, and the tree is read with a closed table of names: nothing is
evaluated, imported, or looked up in the caller's frames.
"""

from __future__ import annotations

import ast
import re
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import ModuleType
from typing import Any, Final
from uuid import UUID

from pydantic_core import PydanticUndefined

from dspy_stream.errors import SignatureError
from dspy_stream.program.annotations import is_annotation, type_name
from dspy_stream.program.fields import Direction, nearest
from dspy_stream.program.refusals import Unreadable
from dspy_stream.program.scan import MAX_DEPTH, MAX_LENGTH, QUOTED, pieces_of, short
from dspy_stream.program.types import NAMED

__all__ = ["Declared", "parse_fields", "parse_type"]

_CLASSES: Final = (int, str, float, bool, list, tuple, dict, set, frozenset, complex, bytes, bytearray)
_ONE: Final = frozenset(
    {
        *(
            "list",
            "set",
            "frozenset",
            "AbstractSet",
            "Collection",
            "Counter",
            "Deque",
            "FrozenSet",
            "Iterable",
        ),
        *("List", "MutableSequence", "MutableSet", "Optional", "Sequence", "Set"),
    }
)
_TWO: Final = frozenset({"dict", "DefaultDict", "Dict", "Mapping", "MutableMapping", "OrderedDict"})
_MANY: Final = frozenset({"tuple", "Tuple", "Union", "Literal"})
_BARE: Final = frozenset({"Optional", "Union", "Literal"})
_TYPING: Final = sorted(
    name for name in _ONE | _TWO | _MANY | {"Any", "Hashable", "Text"} if hasattr(typing, name)
)

_TYPES: Final[Mapping[str, Any]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{name: getattr(typing, name) for name in _TYPING},
    **{f"typing.{name}": getattr(typing, name) for name in _TYPING},
    **{f"datetime.{cls.__name__}": cls for cls in (date, datetime, time, timedelta)},
    **{"decimal.Decimal": Decimal, "uuid.UUID": UUID, "None": type(None), "NoneType": type(None)},
}

# Under these names DSPy's programs, and ours, write the types of values that are more than data.
_HOMES: Final = frozenset({"", "dspy", "dspy.experimental", "ds", "dspy_stream"})

_MAX_JOINS: Final = 500
_FOREIGN: Final = re.compile(r"[^\w\s\[\](),.|\-]")


@dataclass(frozen=True, slots=True)
class Declared:
    """One field of a signature string: ``typed`` is False where no type was written."""

    name: str
    direction: Direction
    annotation: Any
    typed: bool
    default: Any = PydanticUndefined


def parse_fields(text: str, custom_types: Mapping[str, Any] | None = None) -> list[Declared]:
    """Read a whole signature string, inputs first.

    Raises:
        SignatureError: names the field, the piece of text, and what would be right.

    >>> [(field.name, field.annotation) for field in parse_fields("n: int | None -> words: list[str]")]
    [('n', typing.Optional[int]), ('words', list[str])]
    """
    fields = []
    for piece in pieces_of(text):
        annotation = str if piece.type is None else parse_type(piece.type, custom_types, field=piece.name)
        default = PydanticUndefined if piece.default is None else _literal(piece.default, piece.name)
        fields.append(Declared(piece.name, piece.direction, annotation, piece.type is not None, default))
    return fields


def parse_type(text: str, custom_types: Mapping[str, Any] | None = None, *, field: str = "") -> Any:
    """Read one type.

    ``custom_types`` gives the meaning of further names, dotted ones included, and of the classes within
    them, which may be modules; it goes before the built-in names. Among these are ``Image``, ``Tool``,
    ``Code["python"]`` and their like, also as ``dspy.Image``: a name in a closed table, from which
    nothing is imported. ``field`` is named in errors.

    Raises:
        SignatureError: the text is no type, or uses a name that is not known.

    >>> parse_type("dict[str, Literal['a', -1]] | None")
    typing.Optional[dict[str, typing.Literal['a', -1]]]
    """
    reader = _Reader(text, custom_types or {}, f"field `{field}`" if field else f"type {short(text)}")
    bare = QUOTED.sub("", text)
    foreign = _FOREIGN.search(bare)
    if len(text) > MAX_LENGTH:
        raise reader.error(f"{len(text)} characters are more than the {MAX_LENGTH} that are allowed")
    if foreign is not None:
        raise reader.error(f"`{foreign[0]}` has no place in a type")
    if sum(map(bare.count, "|.-")) > _MAX_JOINS:
        raise reader.error(f"more than {_MAX_JOINS} parts are joined by `|`, `.` or `-`")
    return reader.read(_expression(text, reader.where), 0)


def _literal(text: str, field: str) -> Any:
    where = f"field `{field}`"
    tree = _expression(text, where)
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise SignatureError(
            f"{where}: the default {short(text)} is not a plain value; "
            "write a number, a string, True, False, None, or a list, tuple or dict of these"
        ) from error


def _expression(text: str, where: str) -> ast.expr:
    try:
        # Python warns about odd escapes and about `1or 2`. What the text means does not depend on
        # whether warnings are errors; filters are only touched where a warning is possible.
        if "\\" in text or re.search(r"\d[^\W\d]", text):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(f"({text}\n)", mode="eval").body
        return ast.parse(f"({text}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise Unreadable(f"{where}: {short(text)} cannot be read: {reason or 'too complex'}") from error


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the tree of one type into the type."""

    text: str
    custom: Mapping[str, Any]
    where: str

    def error(self, problem: str, node: ast.AST | None = None) -> SignatureError:
        piece = ast.get_source_segment(f"({self.text}\n)", node) if node is not None else None
        at = (
            f"in {short(self.text)}, {short(piece)}"
            if piece and piece != self.text
            else f"in {short(self.text)}"
        )
        return SignatureError(f"{self.where}: {at}: {problem}")

    def read(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.error(f"the type nests deeper than {MAX_DEPTH}")
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.named(node)
        if isinstance(node, ast.Subscript):
            return self.generic(node, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.union([self.read(member, depth + 1) for member in _members(node)], node)
        if isinstance(node, ast.Constant):
            if node.value is None:
                return type(None)
            if isinstance(node.value, str):
                raise self.error("text belongs in Literal[...]; the name of a type has no quotes", node)
        raise self.error("this is not a type", node)

    def named(self, node: ast.expr) -> Any:
        name = _dotted(node)
        if name is None:
            raise self.error("this is not the name of a type", node)
        kind, found = self.look_up(name, node)
        if kind in _BARE:
            raise self.error(f"{kind} needs its parameters, as in {_EXAMPLES[kind]}", node)
        return found

    def look_up(self, name: str, node: ast.expr) -> tuple[str, Any]:
        """The known name without ``typing.`` (empty for a custom type), and what it stands for."""
        if name in self.custom:
            found = self.custom[name]
            if not is_annotation(found):
                raise self.error(f"custom_types[{name!r}] is {type(found).__name__}, not a type", node)
            return "", found
        nested = _nested(name, self.custom)
        if nested is not None:
            return "", nested
        if name in _TYPES:
            return name.removeprefix("typing."), _TYPES[name]
        home, _, last = name.rpartition(".")
        if home in _HOMES and last in NAMED:
            return "", NAMED[last]
        hint = nearest(name, {*_TYPES, *self.custom, *NAMED})
        hint = hint or f"; give a type of your own as custom_types={{{name!r}: ...}}"
        raise self.error(f"the type `{name}` is not known{hint} (Unknown name: {name})", node)

    def generic(self, node: ast.Subscript, depth: int) -> Any:
        name = _dotted(node.value)
        if name is None:
            raise self.error("only a named type takes parameters", node)
        kind, base = self.look_up(name, node)
        members = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if base is NAMED["Code"] and len(members) == 1 and isinstance(members[0], ast.Constant):
            return self.apply(base, [members[0].value], node)
        if kind == "Literal":
            if not members:
                raise self.error(f"Literal needs at least one value, as in {_EXAMPLES[kind]}", node)
            return typing.Literal[tuple(self.constant(member) for member in members)]
        if kind in ("tuple", "Tuple"):
            return base[self.tuple_of(members, depth, node)]
        if kind:
            self.count(kind, len(members), node)
        parts = [self.read(member, depth + 1) for member in members]
        if kind == "Optional":
            return self.union([parts[0], type(None)], node)
        if kind == "Union":
            return self.union(parts, node)
        return self.apply(base, parts, node)

    def count(self, kind: str, given: int, node: ast.expr) -> None:
        if kind in _MANY and given:
            return
        wanted = 1 if kind in _ONE else 2 if kind in _TWO else 0
        if wanted == 0:
            raise self.error(f"`{kind}` takes no parameters", node)
        if given != wanted:
            like = _EXAMPLES.get(kind, f"{kind}[str]" if wanted == 1 else f"{kind}[str, int]")
            raise self.error(f"`{kind}` takes {wanted}, not {given}, as in {like}", node)

    def tuple_of(self, members: list[ast.expr], depth: int, node: ast.expr) -> tuple[Any, ...]:
        dots = [_is_ellipsis(member) for member in members]
        if any(dots):
            if dots != [False, True]:
                raise self.error("`...` follows one type, as in tuple[int, ...]", node)
            return (self.read(members[0], depth + 1), Ellipsis)
        return tuple(self.read(member, depth + 1) for member in members)

    def constant(self, node: ast.expr) -> Any:
        value: Any = node
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        operand = node.operand if negative and isinstance(node, ast.UnaryOp) else node
        if isinstance(operand, ast.Constant):
            value = operand.value
            if negative and type(value) is int:
                return -value
            if not negative and (value is None or isinstance(value, (str, bytes, bool, int))):
                return value
        raise self.error("Literal takes text in quotes, whole numbers, True, False and None", node)

    def union(self, parts: list[Any], node: ast.expr) -> Any:
        try:
            return typing.Union[tuple(parts)]  # noqa: UP007 - the members are known only now
        except TypeError as error:
            raise self.error(f"these cannot be joined: {error}", node) from error

    def apply(self, base: Any, parts: list[Any], node: ast.expr) -> Any:
        try:
            return base[tuple(parts) if len(parts) > 1 else parts[0]]
        except Exception as error:
            raise self.error(f"`{type_name(base)}` does not take these parameters: {error}", node) from error


_EXAMPLES: Final[Mapping[str, str]] = {
    "Optional": "Optional[int]",
    "Union": "Union[int, str]",
    "Literal": "Literal['yes', 'no']",
}


def _nested(name: str, custom: Mapping[str, Any]) -> type[Any] | None:
    """A class that is written within a type or module of ``custom``; no other attribute is looked at."""
    first, *rest = name.split(".")
    found = custom.get(first)
    for inner in rest:
        known = isinstance(found, (type, ModuleType)) and not inner.startswith("_")
        found = vars(found).get(inner) if known else None
    return found if rest and isinstance(found, type) else None


def _members(node: ast.expr) -> list[ast.expr]:
    """The operands of a chain of `|`, without recursion on its left side."""
    members: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        members.append(node.right)
        node = node.left
    return [node, *reversed(members)]


def _dotted(node: ast.expr) -> str | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis
