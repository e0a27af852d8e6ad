"""The outputs of a signature as a strict JSON schema, where their types allow one.

Providers hold an answer to a schema only if it is closed: every member named and required, nothing
else allowed, no alternatives but ``anyOf``. What cannot be said in this way (open dictionaries,
``Any``, tuples) makes the whole signature unfit. Constraints, formats and descriptions are left
out: providers differ in what they take of them, the prompt has them already, and answers are
checked against them when they are read.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from dspy_stream.adapters.schemas import Schemas, referred, schemas_of
from dspy_stream.program import Signature

__all__ = ["strict_format"]

# The tightest limits that a provider has published.
_MAX_DEPTH: Final = 10
_MAX_PROPERTIES: Final = 5000
_MAX_CHOICES: Final = 1000
_MAX_LETTERS: Final = 120_000

_SCALARS: Final = ("string", "integer", "number", "boolean", "null")
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}

_KNOWN: weakref.WeakKeyDictionary[type[Signature], Mapping[str, Any] | None] = weakref.WeakKeyDictionary()


def strict_format(signature: type[Signature]) -> Mapping[str, Any] | None:
    """The request option that holds an answer to the signature's outputs; None where none can.

    Made at the first call and kept as long as the signature lives.

    >>> option = strict_format(Signature("text -> tags: list[str], score: int | None"))
    >>> option["response_format"]["json_schema"]["schema"]["properties"]["score"]
    {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}
    >>> strict_format(Signature("text -> counts: dict[str, int]")) is None
    True
    """
    if signature not in _KNOWN:
        try:
            schema = _Builder().root(schemas_of(signature))
        except _Open:
            _KNOWN[signature] = None
        else:
            # The name of the class is no part of the question, and so none of its key.
            form = {"name": "answer", "strict": True, "schema": schema}
            _KNOWN[signature] = MappingProxyType(
                {"response_format": {"type": "json_schema", "json_schema": form}}
            )
    return _KNOWN[signature]


class _Open(Exception):
    """A type that a closed schema cannot say."""


class _Builder:
    """One schema in the making, and what it has used up of the limits."""

    def __init__(self) -> None:
        self.properties = 0
        self.choices = 0
        self.letters = 0

    def root(self, schemas: Schemas) -> dict[str, Any]:
        """The schema of all outputs."""
        schema = self._object(schemas.fields)
        definitions = {name: self._shape(inner) for name, inner in schemas.definitions.items()}
        if definitions:
            self._count(definitions)
            schema["$defs"] = definitions
        if _depth(schema, definitions, {}) > _MAX_DEPTH:
            raise _Open
        return schema

    def _shape(self, schema: Any) -> dict[str, Any]:
        """One schema without all that a strict one may not have."""
        if not isinstance(schema, Mapping):
            raise _Open
        if "$ref" in schema:
            return {"$ref": schema["$ref"]}
        if "enum" in schema or "const" in schema:
            return self._enum(schema.get("enum", [schema.get("const")]))
        for several in ("anyOf", "oneOf", "allOf"):
            arms = schema.get(several)
            if arms and (several != "allOf" or len(arms) == 1):
                return _any_of([self._shape(arm) for arm in arms])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _any_of([self._shape({**schema, "type": one}) for one in kind])
        if kind in _SCALARS:
            return {"type": kind}
        if kind == "array" and "items" in schema and "prefixItems" not in schema:
            return {"type": "array", "items": self._shape(schema["items"])}
        if kind == "object" and "properties" in schema and not schema.get("additionalProperties"):
            return self._object(schema["properties"])
        raise _Open

    def _object(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        self._count(properties)
        return {
            "type": "object",
            "properties": {name: self._shape(schema) for name, schema in properties.items()},
            "required": list(properties),
            "additionalProperties": False,
        }

    def _enum(self, values: Sequence[Any]) -> dict[str, Any]:
        by_type: dict[str, list[Any]] = {}
        for value in values:
            if type(value) not in _TYPES:
                raise _Open
            by_type.setdefault(_TYPES[type(value)], []).append(value)
        self.choices += len(values)
        self._spend(by_type.get("string", ()))
        null = [{"type": "null"}] if by_type.pop("null", None) else []
        return _any_of([*({"type": kind, "enum": some} for kind, some in by_type.items()), *null])

    def _count(self, names: Mapping[str, Any]) -> None:
        self.properties += len(names)
        self._spend(names)

    def _spend(self, words: Sequence[str] | Mapping[str, Any]) -> None:
        self.letters += sum(map(len, words))
        if self.properties > _MAX_PROPERTIES or self.choices > _MAX_CHOICES or self.letters > _MAX_LETTERS:
            raise _Open


def _any_of(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Alternatives without alternatives among them, each once."""
    flat: list[dict[str, Any]] = []
    for arm in arms:
        flat += [one for one in arm.get("anyOf", [arm]) if one not in flat]
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _depth(schema: Mapping[str, Any], definitions: Mapping[str, Any], known: dict[str, int]) -> int:
    """How deep objects and arrays lie in each other; a type within itself counts once."""
    name = referred(schema)
    if name is not None:
        if name not in known:
            known[name] = 0
            known[name] = _depth(definitions[name], definitions, known)
        return known[name]
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    if "items" in schema:
        inner.append(schema["items"])
    nested = int(schema.get("type") in ("object", "array"))
    return nested + max((_depth(one, definitions, known) for one in inner), default=0)
