"""Response formats and JSON schemas, from the canonical form to what other formats can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["Wanted", "closed", "inlined", "wanted"]

# Keywords that constrained decoding does not know; a parser checks them afterwards.
_UNCHECKED: Final = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "pattern", "default", "examples"),
        *("minProperties", "maxProperties", "title"),
    }
)
_SAYS_WHAT: Final = frozenset({"type", "anyOf", "allOf", "oneOf", "enum", "const"})
_CLOSED: Final = _SAYS_WHAT | {
    *("properties", "required", "items", "description", "format", "additionalProperties")
}
_FORMATS: Final = frozenset(
    {*("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")}
)
# What the schemas of older Gemini models, a part of OpenAPI 3.0, know.
_OPENAPI: Final = frozenset(
    {
        *("type", "format", "description", "nullable", "enum", "items", "properties", "required"),
        *("minItems", "maxItems", "minimum", "maximum", "anyOf", "propertyOrdering"),
    }
)
_OPENAPI_FORMATS: Final = frozenset({"enum", "date-time", "int32", "int64", "float", "double"})
_DEEPEST: Final = 64


class Wanted(NamedTuple):
    """The answer's form that a request asks for; without a schema it is any JSON object."""

    schema: Mapping[str, Any] | None
    name: str = "answer"
    strict: bool | None = None
    description: str | None = None


def wanted(response_format: Any) -> Wanted | None:
    """The canonical ``response_format`` taken apart; None where plain text will do.

    >>> wanted({"type": "json_object"}), wanted({"type": "text"}), wanted(None)
    (Wanted(schema=None, name='answer', strict=None, description=None), None, None)
    """
    if response_format is None or response_format["type"] == "text":
        return None
    if response_format["type"] != "json_schema":
        return Wanted(None)
    given = response_format["json_schema"]
    return Wanted(
        given["schema"], given.get("name") or "answer", given.get("strict"), given.get("description")
    )


def closed(schema: Any, depth: int = 0) -> Any:
    """The schema with every object closed and without keywords that decoding cannot hold to.

    None where an object must stay open, or where the schema refers to itself, which cannot be
    expressed: the schema is then a hint for the model and no constraint.

    >>> closed({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}})
    {'type': 'object', 'properties': {'n': {'type': 'integer'}}, 'additionalProperties': False}
    >>> closed({"type": "object", "additionalProperties": {"type": "string"}}) is None
    True
    """
    made = _closed(inlined(schema, openapi=False), depth)
    return made if made is not _OPEN else None


_OPEN: Final = object()


def _closed(schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _DEEPEST or not _SAYS_WHAT & schema.keys():
        return _OPEN
    if schema.get("additionalProperties") or schema.keys() - _CLOSED - _UNCHECKED:
        return _OPEN
    made: dict[str, Any] = {}
    for name, value in schema.items():
        inner: dict[Any, Any] = {}
        if name == "properties":
            made[name] = inner = {key: _closed(each, depth + 1) for key, each in value.items()}
        elif name in ("anyOf", "allOf", "oneOf"):
            inner = dict(enumerate([_closed(each, depth + 1) for each in value]))
            made["anyOf" if name == "oneOf" else name] = list(inner.values())
        elif name == "items":
            made[name] = inner[0] = _closed(value, depth + 1)
        elif name not in _UNCHECKED and (name != "format" or value in _FORMATS):
            made[name] = value
        if any(each is _OPEN for each in inner.values()):
            return _OPEN
    if made.get("type") == "object":
        if "properties" not in made:
            return _OPEN
        made["additionalProperties"] = False
    return made


def inlined(schema: Any, *, openapi: bool = True) -> Any:
    """The schema with its ``$ref``s replaced by what they name; the empty schema where it is endless.

    ``openapi`` also leaves out what only JSON Schema knows, and writes ``null`` types as
    ``nullable``.

    >>> inlined({"$defs": {"A": {"type": "string"}}, "type": "array", "items": {"$ref": "#/$defs/A"}})
    {'type': 'array', 'items': {'type': 'string'}}
    """
    named = {**(schema.get("definitions") or {}), **(schema.get("$defs") or {})}
    return _inline(schema, named, openapi, ())


def _inline(schema: Any, named: Mapping[str, Any], openapi: bool, inside: tuple[str, ...]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        if name in inside or name not in named or len(inside) > _DEEPEST:
            return {}
        found = _inline(named[name], named, openapi, (*inside, name))
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**found, **_inline(beside, named, openapi, inside)}
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("$defs", "definitions"):
            continue
        if name == "properties":
            made[name] = {key: _inline(each, named, openapi, inside) for key, each in value.items()}
        elif isinstance(value, (list, tuple)):
            made[name] = [_inline(each, named, openapi, inside) for each in value]
        else:
            made[name] = _inline(value, named, openapi, inside)
    return _openapi(made) if openapi else made


def _openapi(schema: dict[str, Any]) -> dict[str, Any]:
    if "const" in schema:
        schema["enum"] = [schema["const"]]
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices is not None:
        some = [choice for choice in choices if choice.get("type") != "null"]
        if len(some) < len(choices):
            schema["nullable"] = True
        if len(some) == 1:
            schema = {**some[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
        else:
            schema["anyOf"] = some
    kind = schema.get("type")
    if isinstance(kind, list):
        some_kinds = [each for each in kind if each != "null"]
        schema["type"] = some_kinds[0] if some_kinds else "string"
        schema["nullable"] = len(some_kinds) < len(kind)
    if schema.get("format") not in _OPENAPI_FORMATS:
        schema.pop("format", None)
    return {name: value for name, value in schema.items() if name in _OPENAPI}
