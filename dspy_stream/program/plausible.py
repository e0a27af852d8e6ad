"""Made-up outputs that satisfy a signature's types: what a program can be tried with before it asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic import ValidationError

from dspy_stream.errors import SignatureError
from dspy_stream.program.signature import Signature

__all__ = ["example_outputs"]

_SENTENCE: Final = "An answer of the length that one may expect here, in plain words. "
_CHARACTERS: Final = 130
# A field of such a name is where a model thinks at length.
_AT_LENGTH: Final = ("reasoning", "rationale", "thoughts", "explanation", "report", "essay", "summary")
_LONGER: Final = 4
_DEEPEST: Final = 6
_ITEMS: Final = 3
_FORMATS: Final[Mapping[str, str]] = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "P1DT1H",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "uri": "https://example.org/page",
    "email": "somebody@example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "binary": "YWJj",
    "base64": "YWJj",
    "base64url": "YWJj",
    "path": "a/file.txt",
    "regex": "a+",
    "decimal": "1.5",
}
# For texts with a pattern, which cannot be read backwards in general.
_TRIES: Final = (
    *("abc", "ABC", "123", "a", "A1", "abc-123"),
    *("2026-01-15", "1.5", "12:00", "+441234567890", "#aabbcc"),
)


def example_outputs(signature: type[Signature]) -> dict[str, Any]:
    """One value for each output, of its type and within its constraints; the same every time.

    Texts have the length of two sentences, lists three items, choices their middle one.

    Raises:
        SignatureError: no value could be found for a field; names it.

    >>> sorted(example_outputs(Signature("text -> label: bool, tags: list[int]")).items())
    [('label', True), ('tags', [1, 2, 3])]
    """
    return {name: _output(signature, name) for name in signature.output_fields}


def _output(signature: type[Signature], name: str) -> Any:
    validator = signature.validator(name)
    try:
        schema = validator.json_schema()
    except Exception as error:  # noqa: BLE001  pydantic's own, of several kinds: a type unknown to JSON
        raise SignatureError(f"field `{name}`: no example can be made of its type: {error}") from None
    length = _CHARACTERS * (_LONGER if name in _AT_LENGTH else 1)
    for attempt in range(len(_TRIES) + 1):
        maker = _Maker(schema.get("$defs", {}), length, attempt)
        try:
            return validator.validate_json(orjson.dumps(maker.value(schema, 0, 0)))
        except (ValidationError, _Impossible):
            continue
    raise SignatureError(f"field `{name}`: no example was found that its type accepts")


class _Impossible(Exception):
    """A schema that nothing satisfies, as far as is tried."""


class _Maker:
    """Values by JSON schema. ``attempt`` says which text to try where there is a pattern."""

    def __init__(self, defs: Mapping[str, Any], length: int, attempt: int) -> None:
        self._defs = defs
        self._length = length
        self._attempt = attempt

    def value(self, schema: Mapping[str, Any], depth: int, number: int) -> Any:
        """A value; the ``number``-th of several is another one, where the schema has several."""
        if depth > _DEEPEST:
            raise _Impossible
        if "$ref" in schema:
            return self.value(self._defs[schema["$ref"].rsplit("/", 1)[-1]], depth + 1, number)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            choices = sorted(schema["enum"], key=lambda choice: len(str(choice)))
            return choices[(len(choices) // 2 + number) % len(choices)]
        for arms in (schema.get("anyOf"), schema.get("oneOf"), schema.get("allOf")):
            if arms:
                return self._one_of(arms, depth, number)
        return self._typed(schema, depth, number)

    def _one_of(self, arms: Sequence[Mapping[str, Any]], depth: int, number: int) -> Any:
        for arm in sorted(arms, key=lambda arm: arm.get("type") == "null"):
            try:
                return self.value(arm, depth, number)
            except _Impossible:  # noqa: PERF203
                continue
        raise _Impossible

    def _typed(self, schema: Mapping[str, Any], depth: int, number: int) -> Any:
        kind = schema.get("type", "string")
        if kind == "array":
            return self._array(schema, depth)
        if kind == "object":
            return self._object(schema, depth)
        if kind in ("integer", "number"):
            return _number(schema, kind == "integer", number)
        if kind in ("boolean", "null"):
            return True if kind == "boolean" else None
        return self._text(schema, number)

    def _text(self, schema: Mapping[str, Any], number: int) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        if "pattern" in schema:
            text = _TRIES[self._attempt % len(_TRIES)]
        else:
            text = (_SENTENCE * (self._length // len(_SENTENCE) + 1))[: self._length].strip()
            text = f"{text} {number}" if number else text
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if len(text) < least:
            text = (text * (least // len(text) + 1))[:least]
        return text if len(text) <= most else text[: int(most)]

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(item, depth + 1, 0) for item in schema["prefixItems"]]
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        items = schema.get("items", {})
        try:
            # Within a list texts are short: what is listed are words rather than sentences.
            short = _Maker(self._defs, min(self._length, _CHARACTERS // _LONGER), self._attempt)
            made = [
                short.value(items, depth + 1, number) for number in range(int(max(least, min(_ITEMS, most))))
            ]
        except _Impossible:
            if least:
                raise
            return []
        if schema.get("uniqueItems"):
            made = [item for place, item in enumerate(made) if item not in made[:place]]
        return made

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, part in schema.get("properties", {}).items():
            try:
                made[name] = self.value(part, depth + 1, 0)
            except _Impossible:  # noqa: PERF203
                if name in schema.get("required", ()):
                    raise
        more = schema.get("additionalProperties")
        if not made and isinstance(more, Mapping):
            made = {f"key {number}": self.value(more, depth + 1, number) for number in (1, 2)}
        return made


def _number(schema: Mapping[str, Any], whole: bool, number: int) -> float | int:
    step = schema.get("multipleOf") or (1 if whole else 0.5)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        value: float = (low + high) / 2
    elif low is not None:
        value = low + step
    elif high is not None:
        value = high - step
    else:
        value = step
    if whole or schema.get("multipleOf"):
        value = math.floor(value / step) * step
    if low is not None and (value < low or value == schema.get("exclusiveMinimum")):
        value += step
    value += number * step if high is None or value + number * step < high else 0
    return int(value) if whole else value
