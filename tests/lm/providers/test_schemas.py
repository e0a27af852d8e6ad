"""Schemas for formats that take only a part of JSON Schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from dspy_stream.lm.providers.schemas import closed, inlined
from tests.lm.providers.conversations import json_values

NODE = {
    "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
    "$ref": "#/$defs/Node",
}


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "string", "minLength": 2, "title": "T"}, {"type": "string"}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "phone"}, {"type": "string"}),
        ({"oneOf": [{"type": "null"}, {"const": 1}]}, {"anyOf": [{"type": "null"}, {"const": 1}]}),
        (
            {"$defs": {"A": {"enum": ["x"]}}, "type": "array", "items": {"$ref": "#/$defs/A"}},
            {"type": "array", "items": {"enum": ["x"]}},
        ),
        (
            {"type": "object", "properties": {"minimum": {"type": "integer", "minimum": 1}}},
            {"type": "object", "properties": {"minimum": {"type": "integer"}}, "additionalProperties": False},
        ),
        ({"type": "object"}, None),
        ({"type": "object", "additionalProperties": {"type": "string"}}, None),
        ({"type": "array", "items": {}}, None),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, None),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, None),
        ({}, None),
        (NODE, None),
    ],
)
def test_a_closed_schema_says_all_or_nothing(schema: dict[str, Any], made: Any) -> None:
    assert closed(schema) == made


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": ["string", "null"], "default": "x"}, {"type": "string", "nullable": True}),
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "N"},
            {"type": "integer", "nullable": True},
        ),
        ({"const": "a", "type": "string"}, {"enum": ["a"], "type": "string"}),
        ({"type": "string", "format": "uri"}, {"type": "string"}),
        (NODE, {"type": "object", "properties": {"next": {}}}),
    ],
)
def test_an_older_schema_has_no_references(schema: dict[str, Any], made: Any) -> None:
    assert inlined(schema) == made


@given(json_values)
def test_any_value_is_taken_apart_or_refused_in_kind(value: Any) -> None:
    for read in (closed, inlined):
        try:
            read(value)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            pass  # what the formats turn into a refusal of the request
