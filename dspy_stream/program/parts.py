"""What a signature is made from: the text, the dict, or the saved state that somebody gives."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_stream.errors import SignatureError
from dspy_stream.program import annotations as kinds
from dspy_stream.program.fields import UNTYPED, InputField, OutputField, infer_prefix
from dspy_stream.program.grammar import Declared, parse_fields
from dspy_stream.program.scan import check_name, short

__all__ = ["Parts", "check_order", "parts_from_mapping", "parts_from_text", "saved_fields"]

Parts = dict[str, tuple[Any, FieldInfo]]


def parts_from_text(text: str, custom_types: Mapping[str, Any] | None) -> Parts:
    """The fields of a signature string; a default must be a value of its field's type."""
    parts: Parts = {}
    for piece in parse_fields(text, custom_types):
        make = InputField if piece.direction == "input" else OutputField
        field = make(default=piece.default, json_schema_extra=None if piece.typed else {UNTYPED: True})
        parts[piece.name] = (piece.annotation, field)
        if piece.default is not PydanticUndefined:
            _check_default(piece, field)
    return parts


def _check_default(piece: Declared, field: FieldInfo) -> None:
    checked = copy.copy(field)
    checked.annotation = piece.annotation
    try:
        kinds.adapter_for(piece.name, checked, any_class=True).validate_python(piece.default)
    except ValidationError as error:
        raise SignatureError(
            f"field `{piece.name}`: the default {short(repr(piece.default))} is no "
            f"{kinds.type_name(piece.annotation)}: {error.errors()[0]['msg']}"
        ) from error


def parts_from_mapping(signature: Mapping[str, Any]) -> Parts:
    """The fields of ``{name: (type, field)}`` or ``{name: field}``."""
    if not isinstance(signature, Mapping):
        raise SignatureError(
            f"a signature is made from a string or a dict, not from {type(signature).__name__}"
        )
    parts: Parts = {}
    for name, given in signature.items():
        if not isinstance(name, str):
            raise SignatureError(f"Field names must be strings, not {name!r}")
        check_name(name)
        annotation, field = _pair(name, given)
        annotation = annotation if annotation is not None else field.annotation
        if annotation is None:
            annotation = str
        if not kinds.is_annotation(annotation):
            raise SignatureError(f"Field types must be types; field `{name}`: {annotation!r} is not a type")
        parts[name] = (annotation, field)
    return parts


def _pair(name: str, given: Any) -> tuple[Any, FieldInfo]:
    if isinstance(given, FieldInfo):
        return None, given
    if not isinstance(given, tuple) or len(given) != 2:
        raise SignatureError(
            f"Field values must be tuples of a type and a field, or fields; field `{name}` is {given!r}"
        )
    if not isinstance(given[1], FieldInfo):
        raise SignatureError(
            "Field values must be Field instances, made by InputField or OutputField; "
            f"field `{name}` has {given[1]!r}"
        )
    return given


def saved_fields(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Prefix and description of each field in a saved signature."""
    fields = state.get("fields") if isinstance(state, Mapping) else None
    if not isinstance(fields, list) or not isinstance(state.get("instructions"), str):
        raise SignatureError("a saved signature has `instructions`, a text, and `fields`, a list")
    saved = []
    for number, field in enumerate(fields, 1):
        prefix, desc = (
            (field.get("prefix"), field.get("description")) if isinstance(field, Mapping) else (0, 0)
        )
        if not isinstance(prefix, str) or not isinstance(desc, str):
            raise SignatureError(f"saved signature, field {number}: `prefix` and `description` are texts")
        saved.append((prefix, desc))
    return saved


_NAMED: Final = re.compile(r"\$\{(\w+)\}")


def check_order(names: Sequence[str], saved: Sequence[tuple[str, str]]) -> None:
    """Refuse saved fields that are of other names than those they are matched with by position.

    Raises:
        SignatureError: a prefix or a description is the one that another name would have been given.
    """
    prefixes = {f"{infer_prefix(name)}:": name for name in names}
    for position, (name, (prefix, desc)) in enumerate(zip(names, saved, strict=True), 1):
        told = _NAMED.fullmatch(desc)
        other = told[1] if told is not None else prefixes.get(prefix, name)
        if other != name and prefix != f"{infer_prefix(name)}:":
            raise SignatureError(
                f"saved field {position} was `{other[:60]}` and would be taken for `{name}`: fields are "
                "matched by position, and the signature's have other names, or another order, than when it "
                "was saved"
            )
