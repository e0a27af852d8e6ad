"""The arguments of a function: their types, their JSON schema, and how values are checked."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.annotations import schema_of
from dspy_stream.program.fields import nearest
from dspy_stream.program.refusals import MissingArgument

__all__ = ["SECTION", "Arguments", "checked_alone", "described_arguments", "unwrapped"]

_KEYWORD: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
SECTION: Final = re.compile(r"^[ \t]*(?:Args|Arguments|Parameters):[ \t]*$", re.MULTILINE)
_ENTRY: Final = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^()\n]*\))?\s*:[ \t]*(.*)$")


class Arguments:
    """The keyword arguments of one function, compiled once.

    Attributes:
        types: the type of each.
        schemas: the JSON schema of each.
        shown: the same with what they refer to written out, but for what refers to itself.
        definitions: what the schemas refer to.
        required: names of those without a default.
        open: whether the function takes arguments of any other name.
    """

    __slots__ = ("_model", "_names", "definitions", "open", "required", "schemas", "shown", "types")

    def __init__(
        self, func: Callable[..., Any], *, types: Mapping[str, Any] | None, words: Mapping[str, str] | None
    ) -> None:
        """Read a function's signature.

        Raises:
            ConfigurationError: it takes arguments by place only, or of a type without a JSON schema.
        """
        parameters = _parameters(func)
        hints = _hints(func)
        self.types = {name: (types or {}).get(name, hints.get(name, Any)) for name in parameters}
        self.required = [name for name, each in parameters.items() if each.default is each.empty]
        self.open = any(each.kind is each.VAR_KEYWORD for each in _signature(func).parameters.values())
        described = {**described_arguments(inspect.getdoc(unwrapped(func)) or ""), **(words or {})}
        self._names = {f"a{number}": name for number, name in enumerate(parameters)}
        self._model = self._checker(parameters, described)
        self.schemas, self.definitions = self._described()
        self.shown = written_out(self.schemas, self.definitions) if self.definitions else self.schemas

    def _checker(
        self, parameters: Mapping[str, inspect.Parameter], words: Mapping[str, str]
    ) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for place, name in self._names.items():
            default = parameters[name].default
            kept = ... if default is inspect.Parameter.empty else default
            about = Field(kept, validation_alias=name, serialization_alias=name, description=words.get(name))
            fields[place] = (self.types[name], about)
        # What is not known is looked for by itself: a rule here would go for dataclasses within as well.
        config = ConfigDict(arbitrary_types_allowed=True)
        try:
            return create_model("Arguments", __config__=config, **fields)
        except (PydanticUserError, NameError, TypeError) as error:
            raise ConfigurationError(f"the types of its arguments cannot be used: {error}") from error

    def _described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Each argument's schema, titles left out: they repeat the names."""
        whole = schema_of(TypeAdapter(self._model), self._model)
        if isinstance(whole, str):
            raise ConfigurationError("the types of its arguments have no JSON schema; give args=... yourself")
        properties = {
            name: {key: value for key, value in schema.items() if key != "title"}
            for name, schema in whole.get("properties", {}).items()
        }
        return properties, whole.get("$defs", {})

    def check(self, given: Mapping[str, Any], tool: str) -> dict[str, Any]:
        """The arguments as the function's own types; those that were not given are left to the function.

        Raises:
            ValueError: an unknown argument, a missing one, or one of the wrong type; it is named.
        """
        known = self._names.values()
        further = {name: value for name, value in given.items() if name not in known}
        for name in further:
            if not self.open:
                listed = ", ".join(known) or "none"
                raise ValueError(
                    f"tool `{tool}` has no argument `{name}`{nearest(str(name), known)}; it has: {listed} "
                    f"(Arg {name} is not in the tool's args)"
                )
        missing = [name for name in self.required if name not in given]
        if missing:
            raise MissingArgument(f"tool `{tool}` misses the argument `{'`, `'.join(missing)}`")
        try:
            made = self._model.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"tool `{tool}`: Arg {place} is invalid: {first['msg']}") from None
        found = {
            name: getattr(made, place)
            for place, name in self._names.items()
            if place in made.model_fields_set
        }
        return {**further, **found}


def checked_alone(types: Mapping[str, Any], given: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """The arguments of a tool whose schema was given, each of a known type checked by itself.

    Raises:
        ValueError: one is of the wrong type; it is named.
    """
    made = dict(given)
    for name, kind in types.items():
        if name in made and kind is not Any:
            try:
                made[name] = TypeAdapter(kind).validate_python(made[name])
            except ValidationError as error:
                raise ValueError(
                    f"tool `{tool}`: Arg {name} is invalid: {error.errors()[0]['msg']}"
                ) from None
    return made


def written_out(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """A JSON schema with the definitions in the places that refer to them.

    >>> written_out({"a": {"$ref": "#/$defs/A"}}, {"A": {"type": "integer"}})
    {'a': {'type': 'integer'}}
    """
    if isinstance(schema, list):
        return [written_out(item, definitions, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in within:
        return schema  # it refers to itself, and would have no end
    made = {key: written_out(value, definitions, within) for key, value in schema.items()}
    if name not in definitions:
        return made
    del made["$ref"]
    return {**written_out(definitions[name], definitions, (*within, name)), **made}


def described_arguments(doc: str) -> dict[str, str]:
    """What the ``Args:`` section of a docstring says of each argument.

    >>> described_arguments("Args:\\n    word: what to\\n        look for\\n    n (int): how many\\n")
    {'word': 'what to look for', 'n': 'how many'}
    """
    start = SECTION.search(doc)
    if start is None:
        return {}
    found: dict[str, str] = {}
    lines = doc[start.end() :].splitlines()[1:]
    margin = next((_indent(line) for line in lines if line.strip()), 0)
    outer = len(start.group()) - len(start.group().lstrip())
    name = ""
    for line in lines:
        depth = _indent(line)
        if line.strip() and depth <= outer:
            break
        entry = _ENTRY.match(line.strip()) if depth == margin else None
        if entry is not None:
            name = entry.group(1)
            found[name] = entry.group(2).strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return {name: text for name, text in found.items() if text}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(func)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"its arguments cannot be found out: {error}") from error


def _parameters(func: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for name, each in _signature(func).parameters.items():
        if each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
            raise ConfigurationError(f"its argument `{name}` is taken by place only; tools take them by name")
        if each.kind in _KEYWORD:
            found[name] = each
    return found


def unwrapped(func: Callable[..., Any]) -> Callable[..., Any]:
    """The function within ``functools.partial``, which has its name, its docstring and its types.

    >>> unwrapped(functools.partial(print, 1)).__name__
    'print'
    """
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _hints(func: Callable[..., Any]) -> dict[str, Any]:
    func = unwrapped(func)
    if isinstance(func, type):
        func = func.__init__  # type: ignore[misc]
    elif not inspect.isroutine(func):
        func = func.__call__  # type: ignore[operator]
    try:
        return typing.get_type_hints(func, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # A type that is known to type checkers only: the signature tells what it can.
        plain = getattr(func, "__annotations__", {})
        return {name: kind for name, kind in plain.items() if not isinstance(kind, str)}
