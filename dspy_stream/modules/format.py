"""Format: named fields filled into a template, without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import AdapterRenderError, ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.program import Prediction
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.runtime import Steps

__all__ = ["Format"]

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Format(Module):
    """Fill named fields into a template; the text is the prediction's one field.

    In the template ``{name}`` stands for a field, ``{{`` and ``}}`` for braces, and nothing else is
    understood: attributes, items, conversions and widths are refused, so a template cannot reach
    into a value. What is filled in is never read as a template again. Texts are filled in as they
    are, None as nothing, all other values as JSON; where that is a text, as of a date, without its marks.

    Args:
        template: the text with its fields.
        output: the name of the field that holds the result.

    Raises:
        ConfigurationError: (when made) a brace without its partner, or something other than a name.
        AdapterRenderError: (when called) a field is missing, or has no JSON form.

    >>> letter = Format("Dear {name}, you owe {sum}.")
    >>> letter(name="Ann", sum=12.5).text
    'Dear Ann, you owe 12.5.'
    >>> Format("{user.password}")
    Traceback (most recent call last):
        ...
    dspy_stream.errors.ConfigurationError: the template has '{user.password}'; only {name} is filled in
    """

    def __init__(self, template: str, *, output: str = "text") -> None:
        if not output.isidentifier():
            raise ConfigurationError(f"the result cannot be named {output!r}: that is no name of a field")
        self.template = template
        self.output = output
        self._parts = _parts(template)

    def forward(self, **fields: Any) -> Prediction:
        """The filled template; fields that it does not name are ignored."""
        return Prediction.of({self.output: self._filled(fields)})

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The same for a driver; nothing is waited for."""
        return _at_once(self, inputs) if type(self).forward is Format.forward else super().steps(inputs)

    def input_names(self) -> tuple[str, ...]:
        """The fields that the template names, in their order."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name))

    def required_names(self) -> tuple[str, ...]:
        """All of them."""
        return self.input_names()

    def output_names(self) -> tuple[str, ...]:
        """The field of the result."""
        return (self.output,)

    def _filled(self, fields: Mapping[str, Any]) -> str:
        return "".join(literal + (_text(fields, name) if name else "") for literal, name in self._parts)

    def __repr__(self) -> str:
        return f"Format({self.template!r})"


def _at_once(module: Format, inputs: Mapping[str, Any]) -> Steps[Prediction]:
    return module.forward(**inputs)
    yield  # a generator, though it never waits


def _parts(template: str) -> tuple[tuple[str, str], ...]:
    """Pieces of text, each with the name of the field that follows it; the last has none."""
    parts: list[tuple[str, str]] = []
    literal, end = "", 0
    for found in _PIECE.finditer(template):
        literal += template[end : found.start()]
        end = found.end()
        piece, name = found.group(), found.group(1)
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif name is None:
            line = template.count("\n", 0, found.start()) + 1
            raise ConfigurationError(f"line {line} of the template has a lone {piece!r}; write it twice")
        elif not name.isidentifier():
            raise ConfigurationError(f"the template has {piece!r}; only {{name}} is filled in")
        else:
            parts.append((literal, name))
            literal = ""
    return (*parts, (literal + template[end:], ""))


def _text(fields: Mapping[str, Any], name: str) -> str:
    try:
        value = fields[name]
    except KeyError:
        given = ", ".join(list(fields)[:20]) or "nothing"
        raise AdapterRenderError(f"field `{name}` of the template is missing; given: {given}") from None
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        plain = to_jsonable(value)
        return plain if isinstance(plain, str) else orjson.dumps(plain).decode()
    except (ConfigurationError, TypeError, ValueError) as error:
        raise AdapterRenderError(f"field `{name}` of the template has no JSON form: {error}") from error
