"""The base of the types whose values are more than plain data, and how they take part in a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import CoreSchema, core_schema, from_json
from typing_extensions import Self

__all__ = ["Blocks", "Rendering", "Text", "Type", "saved_form"]

Blocks = list[dict[str, Any]]
"""Content blocks in the chat-completions form."""

# How DSPy writes content blocks into its saved programs: as JSON between these two.
_SAVED: Final = ("<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-END-IDENTIFIER>>")


class Rendering:
    """The context of a serialization that makes a prompt rather than data."""

    def take(self, value: Type, plain: Callable[[Any], Any]) -> Any:
        """What stands for ``value`` in the data; ``plain`` gives its own fields."""
        raise NotImplementedError


class Type(BaseModel):
    """Base of the types that say themselves how a model sees them; derive from it for your own.

    A subclass is an immutable pydantic model with a method ``format``, which gives a text, a list of
    content blocks in the chat-completions form, or data as a dict. It can stand anywhere in a field's type:
    alone, in lists and dicts, in models and dataclasses. What is written where it stands is what
    ``format`` gives.

    ``description`` says in words what the type is, for the system message. A type of the outputs is
    asked for as JSON of its fields; with a classmethod ``parse``, which makes a value from a text,
    it is asked for as that text, and it is the text of ``format`` in every JSON.

    Nothing is opened or fetched when a value is made from data.

    >>> class Point(Type):
    ...     x: int
    ...     y: int
    ...     def format(self) -> str:
    ...         return f"{self.x}/{self.y}"
    ...     @classmethod
    ...     def description(cls) -> str:
    ...         return "a point, as X/Y"
    ...     @classmethod
    ...     def parse(cls, text: str) -> "Point":
    ...         x, _, y = text.partition("/")
    ...         return cls(x=int(x), y=int(y))
    >>> from pydantic import TypeAdapter
    >>> points = TypeAdapter(list[Point])
    >>> points.validate_python(["1/2"]), points.dump_json([Point(x=3, y=4)])
    ([Point(x=1, y=2)], b'["3/4"]')
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    def format(self) -> str | Blocks | dict[str, Any]:
        """The value as the model sees it: a text, content blocks, or data that it reads as JSON."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is written: define format()")

    @classmethod
    def description(cls) -> str:
        """What a value is, in words; empty where the fields speak for themselves."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Any:
        """A value, or its fields as a mapping, from the text that a model wrote.

        Raises:
            ValueError: the text is none; the message is shown to the model.
        """
        raise NotImplementedError(f"{cls.__name__} is not read from text")

    @classmethod
    def extract_custom_type_from_annotation(cls, annotation: Any) -> list[type[Self]]:
        """The types of this kind within an annotation, as deep as its parameters go, in order.

        >>> Type.extract_custom_type_from_annotation(dict[str, list[int]])
        []
        """
        if isinstance(annotation, type) and not get_args(annotation):
            return [annotation] if issubclass(annotation, cls) else []
        found = [each for member in get_args(annotation) for each in _within(cls, member)]
        return list(dict.fromkeys(found))

    @classmethod
    def _reads_text(cls) -> bool:
        return getattr(cls.parse, "__func__", None) is not _PARSE

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        """Fields from the other forms that data may have; what is not known is left as it is."""
        return value

    @classmethod
    def _of_block(cls, block: Mapping[str, Any]) -> Any:  # noqa: ARG003
        """Fields from a content block."""
        raise ValueError(f"a {cls.__name__} is not made from a content block")

    @model_validator(mode="wrap")
    @classmethod
    def _from_data(cls, value: Any, fields: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.startswith(_SAVED[0]):
            return fields(cls._of_block(_saved_block(value)))
        if isinstance(value, str) and cls._reads_text():
            made = cls.parse(value)
            return made if isinstance(made, cls) else fields(made)
        if isinstance(value, Mapping) and not all(isinstance(name, str) for name in value):
            raise ValueError("the names of fields are texts")
        return fields(cls._coerce(value))

    @model_serializer(mode="wrap")
    def _as_data(self, plain: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        if not isinstance(self, Type):  # another arm of a union, which older versions of pydantic try
            return plain(self)
        if isinstance(info.context, Rendering):
            return info.context.take(self, plain)
        return self.format() if self._reads_text() else plain(self)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = cls.description()
        if cls._reads_text():
            made: dict[str, Any] = {"type": "string"}
        else:
            made = handler.resolve_ref_schema(handler(schema))
        if described:
            made["description"] = described
        elif cls.__module__.startswith("dspy_stream."):
            made.pop("description", None)  # our documentation is not for models
        return made


_PARSE: Final = Type.__dict__["parse"].__func__


def _within(kind: type[Any], annotation: Any) -> list[Any]:
    found: list[Any] = kind.extract_custom_type_from_annotation(annotation)
    return found


def saved_form(value: Any) -> Any:
    """The value for a saved program: content blocks as DSPy writes them, so that it reads them too.

    Lists, tuples and dicts are gone through; anything else is given back as it is.
    """
    if isinstance(value, Type):
        made = value.format() if not value._reads_text() else None
        if isinstance(made, list):
            return f"{_SAVED[0]}{json.dumps(made, ensure_ascii=False)}{_SAVED[1]}"
        return value
    if isinstance(value, Mapping):
        return {name: saved_form(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return [saved_form(item) for item in value]
    return value


def _saved_block(text: str) -> Mapping[str, Any]:
    """The first content block that DSPy saved as text."""
    start, end = _SAVED
    body = text[len(start) : text.find(end)] if end in text else ""
    found = from_json(body, allow_inf_nan=False) if body else None
    if isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, dict):
        raise ValueError("the saved value holds no content block")
    return found


class Text(str):
    """Base of the types that are text with a meaning: a ``str`` in every respect.

    A value is checked by its class when a field of the type is read, and is plain text in JSON.
    """

    __slots__ = ()

    _field = "text"  # the one field of DSPy's model of the same name

    @classmethod
    def description(cls) -> str:
        """What a value is, in words."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value from the text that a model wrote."""
        return cls(text)

    def format(self) -> str:  # type: ignore[override]
        """The text."""
        return str(self)

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """The value from data: a text, or an object with its one field, as of DSPy's model of the name.

        Raises:
            ValueError: it is neither.
        """
        return cls._validate(value)

    def model_dump(self) -> str:
        """The text alone, as in JSON."""
        return str(self)

    @classmethod
    def _validate(cls, value: Any) -> Self:
        if isinstance(value, Mapping) and set(value) == {cls._field}:
            value = value[cls._field]
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError(f"a text was expected, not {type(value).__name__}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = cls.description()
        return {"type": "string", "description": described} if described else {"type": "string"}
