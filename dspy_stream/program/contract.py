"""How the class statement becomes a signature."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_stream.errors import SignatureError
from dspy_stream.program import annotations as kinds
from dspy_stream.program.fields import (
    UNTYPED,
    complete,
    constraints_of,
    direction_of,
    extra_of,
    impossible,
)
from dspy_stream.program.refusals import UndeclaredField
from dspy_stream.program.scan import check_name

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass

    from dspy_stream.program.signature import Signature
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["SignatureMeta"]

_SHADOWS: Final = r"(?s)Field name .* shadows an attribute"
# What is always fit to be answered.
_SIMPLE: Final = (str, int, float, bool, list[str])
_SEE: Final = "\n\nFor further information"


class SignatureMeta(ModelMetaclass):
    """The type of signatures: what can be asked of the class itself."""

    if TYPE_CHECKING:
        model_fields: dict[str, FieldInfo]

    _generated: bool
    _validators: dict[str, TypeAdapter[Any]]

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        known: Mapping[str, TypeAdapter[Any]] | None = None,
        **kwargs: Any,
    ) -> SignatureMeta:
        """Build the class; fields without a type become ``str``. ``known`` fields need no check."""
        parents = [base for base in bases if isinstance(base, SignatureMeta)]
        declared = _declare(namespace) if parents else {}
        try:
            with _unwarned(parents, namespace.get("__annotations__", {})):
                cls = cast(SignatureMeta, super().__new__(mcs, name, bases, namespace, **kwargs))
        except (PydanticUserError, NameError) as error:
            raise SignatureError(f"signature {name}: {str(error).split(_SEE)[0].strip()}") from error
        cls._validators = dict(known or {})
        if any(kinds.unresolved(field.annotation) for field in cls.model_fields.values()):
            # A type that is local to a function, under postponed evaluation of annotations.
            names = dict(sys._getframe(1).f_locals)
            cast(type[BaseModel], cls).model_rebuild(raise_errors=False, _types_namespace=names)
        for field_name, field in cls.model_fields.items():
            inherited = (base.model_fields[field_name] for base in parents if field_name in base.model_fields)
            extra = declared.get(field_name) or _extra(next(inherited, field))
            _adopt(name, field_name, field, extra)
        cls._describe(namespace.get("__doc__"), parents)
        for field_name, field in cls.model_fields.items():
            _check(cast("type[Signature]", cls), field_name, field)
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Calling ``Signature`` makes a class; calling one of its subclasses makes an instance."""
        make = cls.__dict__.get("_make")
        if make is not None:
            return make.__func__(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _describe(cls, doc: str | None, parents: list[SignatureMeta]) -> None:
        """Settle the instructions: the class's own, else those its base was given, else a sentence."""
        given = next((base.instructions for base in parents if not base._generated), None)
        cls._generated = bool(parents) and doc is None and given is None
        if cls._generated:
            cls.__doc__ = _sentence(cls)
        elif parents:
            cls.__doc__ = _clean(doc if doc is not None else given or "")
        else:
            cls._generated = True  # the documentation of Signature is not for models

    @property
    def instructions(cls) -> str:
        """What the model is told to do; assigning to it changes this class."""
        return "" if "_make" in cls.__dict__ else cls.__doc__ or ""

    @instructions.setter
    def instructions(cls, instructions: str) -> None:
        if not isinstance(instructions, str):
            raise SignatureError(f"instructions are text, not {type(instructions).__name__}")
        cls.__doc__ = _clean(instructions)
        cls._generated = False

    @property
    def input_fields(cls) -> dict[str, FieldInfo]:
        """Fields the caller gives, by name, in order."""
        return {name: field for name, field in cls.model_fields.items() if direction_of(field) == "input"}

    @property
    def output_fields(cls) -> dict[str, FieldInfo]:
        """Fields the model gives, by name, in order."""
        return {name: field for name, field in cls.model_fields.items() if direction_of(field) == "output"}

    @property
    def fields(cls) -> dict[str, FieldInfo]:
        """All fields, inputs first."""
        return {**cls.input_fields, **cls.output_fields}

    @property
    def signature(cls) -> str:
        """The names alone, such as ``"question, context -> answer"``."""
        return f"{', '.join(cls.input_fields)} -> {', '.join(cls.output_fields)}"

    def __repr__(cls) -> str:
        lines = [f"{cls.__name__}({cls.signature})"]
        for name, field in cls.fields.items():
            limits = extra_of(field).get("constraints")
            line = f"    {direction_of(field)} {name}: {kinds.type_name(field.annotation)}"
            lines.append(f"{line} ({limits})" if limits else line)
        return "\n".join(lines)


@contextmanager
def _unwarned(parents: list[SignatureMeta], names: dict[str, Any]) -> Iterator[None]:
    """Silence pydantic's warning that a field, such as ``json``, hides a method of instances."""
    if not any(hasattr(base, name) for base in parents for name in names):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_SHADOWS, category=UserWarning)
        yield


def _declare(namespace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Order the annotations as the fields are written; give those without a type ``str``.

    What each declaration carries is returned, because pydantic may change declarations.
    """
    written: dict[str, Any] = namespace.get("__annotations__", {})
    fields = {name: value for name, value in namespace.items() if isinstance(value, FieldInfo)}
    for name in fields:
        check_name(name)
    ordered = {name: written.get(name, str) for name in fields}
    namespace["__annotations__"] = {**ordered, **written}
    untyped = {name: {} if name in written else {UNTYPED: True} for name in fields}
    return {name: {**_extra(field), **untyped[name]} for name, field in fields.items()}


def _extra(field: FieldInfo) -> dict[str, Any]:
    """What the field carries, without the words for its constraints, to which its type may add."""
    extra = dict(extra_of(field))
    if extra.get("constraints") == constraints_of(field):
        extra.pop("constraints", None)
    return extra


def _adopt(owner: str, name: str, field: FieldInfo, extra: dict[str, Any]) -> None:
    """Complete one collected field from its declaration, and refuse what cannot be a field."""
    missing = kinds.unresolved(field.annotation)
    if missing is not None:
        raise SignatureError(
            f"field `{name}` of {owner}: {missing!r} is not defined where the class is written"
        )
    field.json_schema_extra = extra
    if direction_of(field) is None:
        raise UndeclaredField(
            f"field `{name}` of {owner} must be declared with InputField or OutputField, as in "
            f"{name}: str = InputField()"
        )
    complete(name, field)


def _check(cls: type[Signature], name: str, field: FieldInfo) -> None:
    """Refuse a type that cannot be checked, limits that cannot be kept, and a default that breaks them.

    Raises:
        SignatureError: one is; it names the field.
    """
    no_value = impossible(field) if field.metadata else ""
    if no_value:
        raise SignatureError(f"field `{name}`: {no_value}")
    is_output = direction_of(field) == "output"
    if name not in cls._validators and (field.metadata or (is_output and field.annotation not in _SIMPLE)):
        try:
            cls.validator(name)
        except SignatureError as error:
            if kinds.is_unfinished(error):  # a class that is written further down
                return
            raise
    if is_output and field.default is not PydanticUndefined and field.default is not None:
        try:
            cls.validator(name).validate_python(field.default)
        except ValidationError as error:
            raise SignatureError(
                f"field `{name}`: the default {repr(field.default)[:60]} is no "
                f"{kinds.type_name(field.annotation)} that may be answered: {error.errors()[0]['msg']}"
            ) from error


def _clean(text: str) -> str:
    # Once may leave an indented first line, which the next edit would then change.
    return inspect.cleandoc(inspect.cleandoc(text))


def _sentence(cls: SignatureMeta) -> str:
    inputs = ", ".join(f"`{name}`" for name in cls.input_fields)
    outputs = ", ".join(f"`{name}`" for name in cls.output_fields)
    if not inputs:
        return f"Produce the fields {outputs}."
    return f"Given the fields {inputs}, produce the fields {outputs}."
