"""Questions about a field's type: its name, whether None fits, how a value is checked against it."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, ForwardRef, Literal, NewType, TypeVar, Union, cast, get_args, get_origin

import pydantic
import typing_extensions
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, SchemaError
from typing_extensions import TypeAliasType

from dspy_stream.errors import ConfigurationError, SignatureError
from dspy_stream.program.jsonable import to_jsonable

__all__ = ["admits_none", "type_name"]

# From Python 3.12 on there are two: the language's own, and the backport's.
_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
_ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


def is_annotation(value: Any) -> bool:
    """Whether ``value`` can be the type of a field: a class, or a form of ``typing``."""
    if isinstance(value, (type, NewType, TypeVar, *_ALIASES)) or value is Any or value is None:
        return True
    return get_origin(value) is not None


def unresolved(annotation: Any) -> str | None:
    """The name in the annotation that stands for a type nobody defined, if there is one."""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation
    if get_origin(annotation) is Literal:
        return None
    members = get_args(annotation)
    if get_origin(annotation) is Annotated:
        members = members[:1]
    return next((found for member in members if (found := unresolved(member)) is not None), None)


def admits_none(annotation: Any) -> bool:
    """Whether the annotation says that None is a value.

    >>> admits_none(int | None), admits_none(Literal["a", None]), admits_none(Any)
    (True, True, False)
    """
    if annotation is None or annotation is type(None):
        return True
    origin = get_origin(annotation)
    if origin is Annotated:
        return admits_none(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return any(admits_none(member) for member in get_args(annotation))
    return origin is Literal and None in get_args(annotation)


def type_name(annotation: Any) -> str:
    """The type as a reader would write it, without module paths; the same in every process.

    >>> type_name(dict[str, typing.Optional[list[int]]]), type_name(Literal["a", 1])
    ('dict[str, list[int] | None]', "Literal['a', 1]")
    """
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, list):  # the parameters of a Callable
        return f"[{', '.join(map(type_name, annotation))}]"
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is None:
        name = getattr(annotation, "__name__", None)
        return str(name or getattr(annotation, "_name", None) or type(annotation).__name__)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, members))}]"
    if origin is Annotated:
        return type_name(members[0])
    if origin is Union or origin is types.UnionType:
        return " | ".join(map(type_name, members))
    if not members or members == ((),):  # Python 3.10 spells the empty tuple's parameters so
        return type_name(origin) if _is_bare(annotation) else "tuple[()]"
    return f"{type_name(origin)}[{', '.join(map(type_name, members))}]"


def _is_bare(annotation: Any) -> bool:
    return annotation in (tuple, list, dict) or get_origin(annotation) is not tuple


def adapter_for(name: str, field: FieldInfo, *, any_class: bool) -> TypeAdapter[Any]:
    """What checks a value against the field's type and its constraints together.

    With ``any_class``, a class that pydantic does not know is checked by ``isinstance``.

    Raises:
        SignatureError: the type cannot be checked, or a constraint does not fit the type.
    """
    metadata = list(field.metadata)
    if field.discriminator is not None:
        metadata.append(pydantic.Field(discriminator=field.discriminator))
    parts = (field.annotation, *metadata)
    annotation = cast(Any, Annotated)[parts] if metadata else field.annotation
    try:
        adapter = _build(annotation, any_class)
        if metadata:
            _probe(adapter, field.annotation)
        return adapter
    except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, TypeError, ValueError) as error:
        reason = str(error).split("\n\nFor further information", 1)[0]
        what = f"field `{name}`: {type_name(field.annotation)}"
        raise SignatureError(f"{what} cannot be used: {reason}") from error


def is_unfinished(error: SignatureError) -> bool:
    """Whether all that is wrong is that a class is named which is written only later on."""
    cause = error.__cause__
    return isinstance(cause, PydanticUndefinedAnnotation) or (
        isinstance(cause, PydanticUserError) and cause.code == "class-not-fully-defined"
    )


# One value of each type that constraints are often written for.
_VALUES: tuple[Any, ...] = (
    *("a", 1, 1.5, True, b"a", 1j, Decimal(1), [], {}, (), set(), frozenset()),
    *(date(2000, 1, 1), datetime(2000, 1, 1), time(0), timedelta(1)),
)
_SAMPLES: Mapping[type, Any] = {type(value): value for value in _VALUES}


def _probe(adapter: TypeAdapter[Any], annotation: Any) -> None:
    """Raise the TypeError that a constraint of another type would raise with the first answer."""
    origin = get_origin(annotation) or annotation
    if origin is Annotated:
        _probe(adapter, get_args(annotation)[0])
    elif origin is Union or origin is types.UnionType:
        for member in get_args(annotation):
            _probe(adapter, member)
    elif origin is Literal:
        _try(adapter, get_args(annotation)[0])
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        for member in list(origin)[:1]:
            _try(adapter, member)
    elif isinstance(origin, type) and origin in _SAMPLES:
        _try(adapter, _SAMPLES[origin])


def _try(adapter: TypeAdapter[Any], value: Any) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError:
        pass  # the constraint was applied


def _build(annotation: Any, any_class: bool) -> TypeAdapter[Any]:
    try:
        return _of_any_dict(annotation)
    except PydanticSchemaGenerationError as error:
        if not any_class:
            raise
        try:
            return TypeAdapter(annotation, config=_ANY_CLASS)
        except PydanticUserError:
            raise error from None


def _of_any_dict(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        if error.code != "typed-dict-version":
            raise
        # Before Python 3.12, pydantic takes the backport's only, which says the same.
        return TypeAdapter(_with_backports(annotation, {}))


def _with_backports(annotation: Any, made: dict[Any, Any]) -> Any:
    """The type with every ``typing.TypedDict`` in it as one of ``typing_extensions``."""
    if typing.is_typeddict(annotation):
        return _backport(annotation, made)
    members = get_args(annotation)
    origin = get_origin(annotation)
    if not members or origin is Literal:
        return annotation
    parts = tuple(_with_backports(member, made) for member in members)
    if parts == members:
        return annotation
    if origin is Annotated:
        whole = (parts[0], *annotation.__metadata__)
        return cast(Any, Annotated)[whole]
    if origin is types.UnionType:
        return Union[parts]  # noqa: UP007 - the members are data
    return annotation.copy_with(parts) if hasattr(annotation, "copy_with") else cast(Any, origin)[parts]


def _backport(written: Any, made: dict[Any, Any]) -> Any:
    if written not in made:
        made[written] = written  # one that holds itself stays as it is, and pydantic says so
        hints = typing_extensions.get_type_hints(written, include_extras=True)
        fields = {name: _with_backports(hint, made) for name, hint in hints.items()}
        for name in written.__optional_keys__:
            if get_origin(fields[name]) not in (typing_extensions.Required, typing_extensions.NotRequired):
                fields[name] = typing_extensions.NotRequired[fields[name]]
        made[written] = typing_extensions.TypedDict(written.__name__, fields)  # type: ignore[operator]
        made[written].__doc__ = written.__doc__
    return made[written]


class _Quiet(GenerateJsonSchema):
    """Defaults in one spelling; those that are no JSON are left out without a warning."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's own form

    def encode_default(self, dft: Any) -> Any:
        """The default as JSON, with sets in an order that does not depend on hashes."""
        try:
            return to_jsonable(dft)
        except ConfigurationError as error:
            raise PydanticSerializationError(str(error)) from error


def schema_of(adapter: TypeAdapter[Any], annotation: Any) -> Mapping[str, Any] | str:
    """The JSON schema of a type, or its name where it has none."""
    try:
        return adapter.json_schema(schema_generator=_Quiet)
    except (PydanticUserError, TypeError, ValueError):
        module = getattr(annotation, "__module__", "")
        return f"{module}.{type_name(annotation)}"
