"""Signatures: typed contracts from input fields to output fields, with instructions.

A signature is a class and is never instantiated by this package. Every edit gives a new class.
"""

from __future__ import annotations

import copy
import copyreg
import hashlib
import json
import sys
import types
from collections.abc import Mapping
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from dspy_stream.errors import ConfigurationError, SignatureError
from dspy_stream.program import annotations as kinds
from dspy_stream.program.contract import SignatureMeta
from dspy_stream.program.fields import (
    LIMITS,
    UNTYPED,
    constraints_of,
    direction_of,
    extra_of,
    nearest,
    relimited,
)
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.parts import Parts, check_order, parts_from_mapping, parts_from_text, saved_fields
from dspy_stream.program.refusals import UnknownField

__all__ = ["Signature", "SignatureMeta", "ensure_signature", "make_signature"]


class Signature(BaseModel, metaclass=SignatureMeta):
    """A typed contract: what goes in, what comes out, and the instructions between them.

    Subclass it, with the docstring as the instructions, or call it with a string or a dict: that
    gives a new class. An annotation may be anything that pydantic checks; without one it is ``str``.

    Raises:
        SignatureError: while the class is built, naming the field and the reason.

    >>> from dspy_stream.program import InputField, OutputField
    >>> class Triage(Signature):
    ...     '''Decide how urgent a message is.'''
    ...     text: str = InputField()
    ...     urgency: int = OutputField(ge=1, le=5)
    >>> Triage.signature, Triage.instructions
    ('text -> urgency', 'Decide how urgent a message is.')
    >>> Triage.validator("urgency").validate_python("4")
    4
    >>> Signature("question -> answer: bool").instructions
    'Given the fields `question`, produce the fields `answer`.'
    """

    # The model of instances is hardly ever used, and is the expensive part of a class.
    model_config = ConfigDict(defer_build=True, protected_namespaces=(), arbitrary_types_allowed=True)

    @classmethod
    def validator(cls, name: str) -> TypeAdapter[Any]:
        """What checks and converts a value of a field: its type and its constraints, in lax mode.

        It is built at the first call and kept; it may be used from any thread.

        Raises:
            SignatureError: there is no such field, or its type cannot be checked.

        >>> Signature("text -> tags: list[str]").validator("tags").validate_json('["a"]')
        ['a']
        """
        found = cls._validators.get(name)
        if found is None:
            field = cls._known(name)
            found = kinds.adapter_for(name, field, any_class=direction_of(field) == "input")
            cls._validators[name] = found
        return found

    @classmethod
    def may_omit(cls, name: str) -> bool:
        """Whether a value may be missing: the field has a default, or its type admits None."""
        field = cls._known(name)
        return not field.is_required() or kinds.admits_none(field.annotation)

    @classmethod
    def default_of(cls, name: str) -> Any:
        """The value of a missing field: its default, a new one from its factory, or None.

        Raises:
            SignatureError: the field must be given; :meth:`may_omit` tells beforehand.

        >>> Signature("text -> note: str | None, score: int = 3").default_of("score")
        3
        """
        field = cls._known(name)
        if not field.is_required():
            return field.get_default(call_default_factory=True)
        if kinds.admits_none(field.annotation):
            return None
        raise SignatureError(f"field `{name}` has no default and its type does not admit None")

    @classmethod
    def is_typed(cls, name: str) -> bool:
        """Whether the field was declared with a type, rather than being ``str`` for want of one."""
        return not extra_of(cls._known(name)).get(UNTYPED, False)

    @classmethod
    def digest(cls) -> str:
        """64 hex digits that name the contract; the same in every process.

        Names, order, direction, types, constraints, defaults, descriptions and instructions count;
        the class's own name does not.
        """
        form = {"instructions": cls.instructions, "fields": [cls._form(name) for name in cls.fields]}
        text = json.dumps(form, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @classmethod
    def equals(cls, other: Any) -> bool:
        """Whether the other signature asks for the same: instructions, and fields in the same order.

        Types, constraints, defaults, descriptions and prefixes are compared; names of classes are not.
        """
        if not isinstance(other, SignatureMeta) or cls.instructions != other.instructions:
            return False
        return list(map(_essence, cls.fields.items())) == list(map(_essence, other.fields.items()))

    @classmethod
    def with_instructions(cls, instructions: str) -> type[Signature]:
        """The same fields with other instructions."""
        return cls._edited(cls._parts(), instructions)

    @classmethod
    def append_instructions(cls, instructions: str) -> type[Signature]:
        """The same fields, and the instructions followed by a blank line and these."""
        return cls.with_instructions(f"{cls.instructions}\n\n{instructions}")

    @classmethod
    def with_updated_fields(cls, name: str, type_: Any = None, **json_schema_extra: Any) -> type[Signature]:
        """Change what is kept about a field, such as ``desc`` and ``prefix``, its type, its constraints.

        Constraints go by pydantic's names, as ``ge`` and ``max_length``; None takes one away.

        Raises:
            SignatureError: there is no such field, or its constraints do not fit its type.

        >>> sig = Signature("text -> label").with_updated_fields("label", bool, desc="is it spam?")
        >>> sig.fields["label"].annotation, sig.fields["label"].json_schema_extra["desc"]
        (<class 'bool'>, 'is it spam?')
        """
        field = copy.copy(cls._known(name))
        extra = dict(extra_of(field))
        if type_ is not None:
            extra.pop(UNTYPED, None)
        limits = {key: json_schema_extra.pop(key) for key in LIMITS if key in json_schema_extra}
        if limits:
            if extra.get("constraints") == constraints_of(field):
                extra.pop("constraints", None)
            field.metadata = relimited(field.metadata, limits)
        field.json_schema_extra = {**extra, **json_schema_extra}
        parts = cls._parts()
        parts[name] = (parts[name][0] if type_ is None else type_, field)
        return cls._edited(parts, cls.instructions, name if limits or type_ is not None else "")

    @classmethod
    def prepend(cls, name: str, field: Any, type_: Any = None) -> type[Signature]:
        """Add a field before the others of its side."""
        return cls.insert(0, name, field, type_)

    @classmethod
    def append(cls, name: str, field: Any, type_: Any = None) -> type[Signature]:
        """Add a field after the others of its side."""
        return cls.insert(-1, name, field, type_)

    @classmethod
    def insert(cls, index: int, name: str, field: Any, type_: Any = None) -> type[Signature]:
        """Add a field at a position among the inputs or among the outputs, as its kind says.

        Negative positions count from the end, -1 being the end itself. The type is ``type_``, else
        the field's annotation, else ``str``. A field of the same name on the same side is replaced.

        Raises:
            SignatureError: the position is out of range, the field is not made by ``InputField`` or
                ``OutputField``, or the other side has a field of this name.

        >>> from dspy_stream.program import InputField
        >>> Signature("a, b -> c").insert(1, "x", InputField(), int).signature
        'a, x, b -> c'
        """
        direction = direction_of(field) if isinstance(field, FieldInfo) else None
        if direction is None:
            raise SignatureError(f"field `{name}`: make it with InputField() or OutputField(), not {field!r}")
        if name in cls.fields and direction_of(cls.fields[name]) != direction:
            raise SignatureError(f"field `{name}` is already there on the other side; delete it first")
        parts = {key: part for key, part in cls._parts().items() if key != name}
        side = [key for key, (_, info) in parts.items() if direction_of(info) == direction]
        at = index + len(side) + 1 if index < 0 else index
        if not 0 <= at <= len(side):
            raise SignatureError(
                f"Invalid index to insert: {index}. Field `{name}`: position {index} is out of range; "
                f"with {len(side)} {direction} fields it runs from {-len(side) - 1} to {len(side)}"
            )
        order = list(parts)
        order.insert(at if direction == "input" else len(order) - len(side) + at, name)
        parts[name] = (type_ if type_ is not None else field.annotation, field)
        return cls._edited({key: parts[key] for key in order}, cls.instructions, name)

    @classmethod
    def delete(cls, name: str) -> type[Signature]:
        """The signature without this field; the same fields where it has none of this name."""
        parts = {key: part for key, part in cls._parts().items() if key != name}
        return cls._edited(parts, cls.instructions)

    @classmethod
    def dump_state(cls) -> dict[str, Any]:
        """What an optimizer may have changed, in the JSON that DSPy saves.

        >>> Signature("q -> a").dump_state()["fields"][0]
        {'prefix': 'Q:', 'description': '${q}'}
        """
        extras = [extra_of(field) for field in cls.fields.values()]
        fields = [{"prefix": extra["prefix"], "description": extra["desc"]} for extra in extras]
        return {"instructions": cls.instructions, "fields": fields}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> type[Signature]:
        """This signature with the instructions, prefixes and descriptions of a saved one.

        The saved form has no names: fields are matched by position, inputs first. Where a prefix or a
        description gives away that it belongs to a field of another name, the state is refused.

        Raises:
            SignatureError: the state has another shape, another number of fields, or another order.
        """
        saved = saved_fields(state)
        parts = cls._parts()
        if len(saved) != len(parts):
            raise SignatureError(
                f"the saved signature has {len(saved)} fields, but {cls.__name__} has {len(parts)} "
                f"({cls.signature}); they are matched by position, so the state is of another program"
            )
        check_order(list(parts), saved)
        for (name, (annotation, field)), (prefix, desc) in zip(parts.items(), saved, strict=True):
            loaded = copy.copy(field)
            loaded.json_schema_extra = {**extra_of(field), "prefix": prefix, "desc": desc}
            parts[name] = (annotation, loaded)
        return cls._edited(parts, state["instructions"])

    @staticmethod
    def _make(*args: Any, **kwargs: Any) -> type[Signature]:
        return make_signature(*args, **kwargs)

    @classmethod
    def _parts(cls) -> Parts:
        return {name: (field.annotation, field) for name, field in cls.fields.items()}

    @classmethod
    def _edited(cls, parts: Parts, instructions: str, changed: str = "") -> type[Signature]:
        """The signature of these parts, of which all but one are this one's."""
        known = {name: each for name, each in cls._validators.items() if name in parts and name != changed}
        return _made(parts_from_mapping(parts), instructions, cls.__name__, known)

    @classmethod
    def _known(cls, name: str) -> FieldInfo:
        field = cls.model_fields.get(name)
        if field is None:
            hint = nearest(name, cls.model_fields) or f"; its fields are {', '.join(cls.fields)}"
            raise UnknownField(f"{cls.__name__} has no field `{name}`{hint}")
        return field

    @classmethod
    def _form(cls, name: str) -> dict[str, Any]:
        """One field as the digest sees it."""
        field = cls._known(name)
        extra = extra_of(field)
        try:
            type_: Any = kinds.schema_of(cls.validator(name), field.annotation)
        except SignatureError:
            type_ = kinds.type_name(field.annotation)
        form = {"name": name, "direction": direction_of(field), "type": type_}
        form |= {"desc": extra["desc"], "constraints": extra.get("constraints", "")}
        if field.default_factory is not None:
            form["default"] = ["factory", kinds.type_name(field.default_factory)]
        elif not field.is_required():
            form["default"] = _spelled(field.default)
        return form


def make_signature(
    signature: str | Mapping[str, Any],
    instructions: str | None = None,
    signature_name: str = "StringSignature",
    custom_types: Mapping[str, Any] | None = None,
) -> type[Signature]:
    """A new signature from ``"question, context: list[str] -> answer: bool"``, or from a dict.

    The string may use Python's builtin types, the names of ``typing``, and those in
    ``custom_types``; ``name: type = value`` gives a default. The dict maps names to
    ``(type, field)`` or to a field, where fields come from ``InputField`` and ``OutputField``.

    Raises:
        SignatureError: names the field, the piece of text, and what would be right.

    >>> make_signature("text -> label: Literal['ham', 'spam']").output_fields["label"].annotation
    typing.Literal['ham', 'spam']
    >>> make_signature("text -> label: Bool")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    dspy_stream.errors.SignatureError: field `label`: in 'Bool': the type `Bool` is not known...
    """
    parts = (
        parts_from_text(signature, custom_types)
        if isinstance(signature, str)
        else parts_from_mapping(signature)
    )
    return _made(parts, instructions, signature_name, {})


def _made(
    parts: Parts, instructions: str | None, name: str, known: Mapping[str, TypeAdapter[Any]]
) -> type[Signature]:
    if instructions is not None and not isinstance(instructions, str):
        raise SignatureError(f"instructions are text, not {type(instructions).__name__}")
    written = {name: annotation for name, (annotation, _) in parts.items()}
    body: dict[str, Any] = {"__module__": __name__, "__doc__": instructions, "__annotations__": written}
    body |= {name: field for name, (_, field) in parts.items()}
    return types.new_class(name, (Signature,), {"known": known}, lambda namespace: namespace.update(body))


@overload
def ensure_signature(
    signature: str | type[Signature], instructions: str | None = None
) -> type[Signature]: ...


@overload
def ensure_signature(signature: None, instructions: str | None = None) -> None: ...


def ensure_signature(
    signature: str | type[Signature] | None, instructions: str | None = None
) -> type[Signature] | None:
    """A signature class from a class or a string; None stays None.

    Raises:
        SignatureError: instructions are given for a class, which has its own; or it is something else.
    """
    if signature is None:
        return None
    if isinstance(signature, str):
        return make_signature(signature, instructions)
    if not isinstance(signature, SignatureMeta):
        raise SignatureError(f"a signature is a Signature class or a string, not {type(signature).__name__}")
    if instructions is not None:
        raise SignatureError(
            "Don't specify instructions when initializing with a Signature: "
            f"{signature.__name__} has instructions; use {signature.__name__}.with_instructions(...)"
        )
    return signature


def _spelled(default: Any) -> Any:
    try:
        return to_jsonable(default)
    except ConfigurationError:
        return ["object", kinds.type_name(type(default))]


def _essence(item: tuple[str, FieldInfo]) -> tuple[Any, ...]:
    name, field = item
    extra = {key: value for key, value in extra_of(field).items() if key != UNTYPED}
    return name, field.annotation, extra, field.metadata, field.default, field.default_factory


def _reduce(cls: SignatureMeta) -> Any:
    """Classes of a module are pickled by name, those made at run time by their parts."""
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls:
        return cls.__qualname__
    return make_signature, (cls._parts(), cls.instructions, cls.__name__)  # type: ignore[attr-defined]


copyreg.pickle(SignatureMeta, _reduce)
