"""The outputs of a signature as a short text that looks nearly like TypeScript.

A model reads ``visits: Visit[]`` as easily as the JSON schema of the same type, which is several
times as long. Descriptions, constraints and defaults stand above a member as comments. A type that
is used once is written where it is used; one that is used more often, that holds itself, or that
lies too deep is written once, by its name, before the answer. So the text is never longer than all
types together, whatever they refer to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.hints import VERBATIM
from dspy_stream.adapters.schemas import Schemas, referred, schemas_of
from dspy_stream.adapters.write import json_text
from dspy_stream.program import Signature
from dspy_stream.program.annotations import type_name

__all__ = ["sketch"]

_DEPTH: Final = 6
_NAMES: Final = {"integer": "int", "number": "float", "boolean": "bool", "string": "string", "null": "null"}
_LIMITS: Final = {
    "minimum": "at least $",
    "exclusiveMinimum": "more than $",
    "maximum": "at most $",
    "exclusiveMaximum": "less than $",
    "multipleOf": "a multiple of $",
    "minLength": "at least $ characters",
    "maxLength": "at most $ characters",
    "minItems": "at least $ items",
    "maxItems": "at most $ items",
    "pattern": "matches $",
    "format": "$",
}
_DEFAULT: Final = 60


def sketch(signature: type[Signature]) -> str:
    """The shape of an answer in JSON, with the types it needs before it.

    Raises:
        SignatureError: a field's type cannot be checked.

    >>> print(sketch(Signature("text -> tags: list[str], mood: Literal['good', 'bad'] | None")))
    {
      tags: string[],
      mood: "good" | "bad" | null,
    }
    """
    return _Sketch(schemas_of(signature)).whole(fields_of(signature).outputs)


class _Sketch:
    def __init__(self, schemas: Schemas) -> None:
        self._fields = schemas.fields
        self._definitions = schemas.definitions
        uses = Counter(
            name
            for schema in [*schemas.fields.values(), *schemas.definitions.values()]
            for name in _references(schema)
        )
        self._named = {name for name in schemas.definitions if uses[name] > 1 or self._holds_itself(name)}
        self._wanted: list[str] = []  # named types in the order in which they are first met

    def _holds_itself(self, name: str) -> bool:
        seen: set[str] = set()
        left = list(_references(self._definitions[name]))
        while left:
            other = left.pop()
            if other == name:
                return True
            if other not in seen:
                seen.add(other)
                left += _references(self._definitions[other])
        return False

    def whole(self, outputs: tuple[Bound, ...]) -> str:
        """Named types, and then the answer."""
        lines = ["{"]
        for field in outputs:
            schema = self._fields[field.name]
            kind = type_name(field.codec.annotation) if schema is None else self._type(schema, 1)
            # What a text is stands with the field's description, outside.
            if schema is not None and not field.codec.textual:
                lines += [f"  // {said}" for said in self._described(schema)]
            lines.append(f"  {field.name}: {kind},")
        lines.append("}")
        blocks: list[str] = []
        done = 0
        while done < len(self._wanted):  # each may name more
            name = self._wanted[done]
            done += 1
            definition = self._definitions[name]
            said = [f"// {comment}\n" for comment in self._comments(definition)]
            blocks.append(f"{''.join(said)}{name} = {self._type(definition, 0)}")
        return "\n\n".join([*blocks, "\n".join(lines)])

    def _type(self, schema: Mapping[str, Any], depth: int) -> str:
        name = referred(schema)
        if name is not None:
            if name in self._named or depth > _DEPTH:
                if name not in self._wanted:
                    self._wanted.append(name)
                return name
            return self._type(self._definitions[name], depth)
        if "enum" in schema or "const" in schema:
            return " | ".join(map(json_text, schema.get("enum", [schema.get("const")])))
        for several, sign in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
            if schema.get(several):
                return sign.join(dict.fromkeys(self._type(arm, depth) for arm in schema[several]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self._type({**schema, "type": one}, depth) for one in kind)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "object":
            return self._object(schema, depth)
        return _NAMES.get(kind, "any") if isinstance(kind, str) else "any"

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        if "prefixItems" in schema:
            return f"[{', '.join(self._type(item, depth) for item in schema['prefixItems'])}]"
        items = schema.get("items")
        inner = self._type(items, depth) if isinstance(items, Mapping) else "any"
        return f"({inner})[]" if " | " in inner and not inner.endswith("}") else f"{inner}[]"

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        if "properties" not in schema:
            values = schema.get("additionalProperties")
            inner = self._type(values, depth) if isinstance(values, Mapping) else "any"
            return f"{{[key: string]: {inner}}}"
        required = schema.get("required", ())
        indent = "  " * (depth + 1)
        lines = ["{"]
        for name, member in schema["properties"].items():
            lines += [f"{indent}// {comment}" for comment in self._comments(member)]
            mark = "" if name in required else "?"
            lines.append(f"{indent}{name}{mark}: {self._type(member, depth + 1)},")
        return "\n".join([*lines, "  " * depth + "}"])

    def _described(self, schema: Mapping[str, Any]) -> Iterator[str]:
        """The description of a member, or else of the type that stands in its place; its first paragraph."""
        name = referred(schema)
        described = schema.get("description")
        if described is None and name is not None and name not in self._named:
            described = self._definitions[name].get("description")
        if isinstance(described, str) and described.strip():
            yield " ".join(described.strip().split("\n\n", 1)[0].split())

    def _comments(self, schema: Mapping[str, Any]) -> Iterator[str]:
        """What is said about a member."""
        yield from self._described(schema)
        limits = list(dict.fromkeys(_limits(schema)))
        default = schema.get("default")
        if default is not None:
            text = json_text(default)
            limits.append(f"default {text if len(text) <= _DEFAULT else text[:_DEFAULT] + '...'}")
        if limits:
            yield ", ".join(limits)


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    for key, words in _LIMITS.items():
        if key in schema and not (key.endswith("Items") and "prefixItems" in schema):
            yield words.replace("$", str(schema[key]))
    for arm in schema.get("anyOf", ()):
        yield from _limits(arm)


def _references(schema: Any) -> Iterator[str]:
    """The definitions that a schema refers to, as often as it does."""
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, Mapping):
        name = referred(schema)
        if name is not None:
            yield name
        for key, value in schema.items():
            if key not in VERBATIM:
                yield from _references(value)
