"""A signature as JSON by the names of its fields, and back."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_stream.errors import ConfigurationError, SignatureError
from dspy_stream.program.annotations import type_name
from dspy_stream.program.document import closed
from dspy_stream.program.fields import UNTYPED, InputField, OutputField, direction_of, extra_of
from dspy_stream.program.grammar import parse_type
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.scan import check_name
from dspy_stream.program.signature import Signature, make_signature

__all__ = ["build_signature", "fit_signature", "saved_signature"]

_log = logging.getLogger("dspy_stream")

_MAKERS: Final[Mapping[str, Callable[..., Any]]] = {"input": InputField, "output": OutputField}
# Constraints that are saved: the attribute of what pydantic keeps has the option's name.
_CONSTRAINTS: Final = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length")
_MOST_FIELDS: Final = 200
_CODE: Final = re.compile(r"\bCode\[([\w+#.-]+)\]")  # the name of the class, without quotes


def saved_signature(signature: type[Signature]) -> dict[str, Any]:
    """Instructions, and for each field its side, type, prefix and description.

    >>> saved_signature(Signature("text -> label: bool"))["fields"]["label"]
    {'side': 'output', 'type': 'bool', 'prefix': 'Label:', 'desc': '${label}'}
    """
    fields = {}
    for name, field in signature.fields.items():
        extra = extra_of(field)
        fields[name] = {
            "side": direction_of(field),
            "type": _spelled(field.annotation),
            "prefix": extra["prefix"],
            "desc": extra["desc"],
        }
    return {"instructions": signature.instructions, "fields": fields}


def fit_signature(signature: type[Signature], saved: Any, where: str) -> type[Signature]:
    """This signature with the instructions, prefixes and descriptions of a saved one, by name.

    The order of the saved fields does not matter. A type that has changed is only warned of: the
    program decides about types.

    Raises:
        ConfigurationError: the saved signature has other fields, or a field on the other side.
    """
    saved = closed(saved, ("instructions", "fields"), where)
    fields = _fields(saved["fields"], where)
    if missing := [name for name in signature.fields if name not in fields]:
        raise ConfigurationError(f"{where}: the saved signature lacks the field `{missing[0]}`")
    if unknown := [name for name in fields if name not in signature.fields]:
        known = ", ".join(signature.fields)
        raise ConfigurationError(f"{where}: there is no field `{unknown[0]}` any more; there are {known}")
    made = signature
    for name, field in signature.fields.items():
        given = closed(
            fields[name], ("side", "type", "prefix", "desc"), f"{where}, field `{name}`", optional=_MORE
        )
        if given["side"] != direction_of(field):
            raise ConfigurationError(
                f"{where}: field `{name}` was an {given['side']!s:.20} when it was saved"
            )
        if given["type"] != _spelled(field.annotation):
            _log.warning("%s: field `%s` had another type when it was saved", where, name)
        prefix, desc = _text(given, "prefix", where), _text(given, "desc", where)
        extra = extra_of(field)
        if (prefix, desc) != (extra["prefix"], extra["desc"]):
            made = made.with_updated_fields(name, prefix=prefix, desc=desc)
    instructions = _text(saved, "instructions", where)
    return made if instructions == made.instructions else made.with_instructions(instructions)


_MORE: Final = ("untyped", "default", "constraints")


def whole_signature(signature: type[Signature], where: str) -> dict[str, Any]:
    """The saved form with all that is needed to build the signature again.

    Raises:
        ConfigurationError: a field has a type or an option that cannot be written as text.
    """
    saved = saved_signature(signature)
    for name, field in signature.fields.items():
        here = f"{where}, field `{name}`"
        entry = saved["fields"][name]
        _refuse_foreign(entry["type"], field.annotation, here)
        if not signature.is_typed(name):
            entry["untyped"] = True
        if field.default_factory is not None:
            raise ConfigurationError(f"{here}: a default that is made by a function cannot be saved")
        if not field.is_required():
            entry["default"] = to_jsonable(field.default, here)
        if constraints := _constraints(field, here):
            entry["constraints"] = constraints
    return saved


def _spelled(annotation: Any) -> str:
    """The type as a signature string may name it."""
    return _CODE.sub(r"Code['\1']", type_name(annotation))


def _refuse_foreign(text: str, annotation: Any, where: str) -> None:
    try:
        read = parse_type(text)
    except SignatureError:
        read = None
    if read is None or _spelled(read) != text or not _same(read, annotation):
        raise ConfigurationError(
            f"{where}: {text} is a type of your own, which a saved program cannot bring along; save the "
            "state alone, and make the program in code"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two types of the same spelling are made of the same classes."""
    mine, theirs = get_args(one), get_args(other)
    if not mine and not theirs:
        return one is other or one == other
    return len(mine) == len(theirs) and all(map(_same, mine, theirs))


def _constraints(field: FieldInfo, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kept in field.metadata:
        names = [name for name in _CONSTRAINTS if getattr(kept, name, None) is not None]
        if not names:
            raise ConfigurationError(f"{where}: {kept!r} cannot be saved; leave it to code")
        found.update({name: to_jsonable(getattr(kept, name), where) for name in names})
    return found


def build_signature(saved: Any, where: str) -> type[Signature]:
    """The signature that :func:`whole_signature` has written; nothing in it is imported or evaluated.

    Raises:
        ConfigurationError: it is not such a form, or names what a signature cannot have.
    """
    saved = closed(saved, ("instructions", "fields"), where)
    parts = {}
    for name, given in _fields(saved["fields"], where).items():
        here = f"{where}, field `{name[:80]}`"
        check_name(name)
        given = closed(given, ("side", "type", "prefix", "desc"), here, optional=_MORE)
        if given["side"] not in _MAKERS:
            raise ConfigurationError(f"{here}: its side is input or output")
        constraints = closed(given.get("constraints", {}), (), here, optional=_CONSTRAINTS)
        field = _MAKERS[given["side"]](
            desc=_text(given, "desc", here),
            prefix=_text(given, "prefix", here),
            default=given.get("default", PydanticUndefined),
            json_schema_extra={UNTYPED: True} if given.get("untyped") is True else None,
            **constraints,
        )
        parts[name] = (parse_type(_text(given, "type", here), field=name), field)
    made = make_signature(parts, _text(saved, "instructions", where))
    for name, (_, field) in parts.items():
        if not field.is_required():
            _check_default(made, name, f"{where}, field `{name}`")
    return made


def _check_default(signature: type[Signature], name: str, where: str) -> None:
    try:
        signature.validator(name).validate_python(signature.fields[name].default)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: its default does not fit: {error.errors()[0]['msg']}") from None


def _fields(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST_FIELDS:
        raise ConfigurationError(f"{where}: `fields` is an object of 1 to {_MOST_FIELDS} fields")
    return value


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    found = value[key]
    if not isinstance(found, str):
        raise ConfigurationError(f"{where}: `{key}` is a text, not {type(found).__name__}")
    return found
