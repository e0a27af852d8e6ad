"""BAMLAdapter: JSON answers whose form is shown as a short sketch of their types."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.hints import described
from dspy_stream.adapters.json import JSONAdapter
from dspy_stream.adapters.markers import marker
from dspy_stream.adapters.sketch import sketch
from dspy_stream.program import Signature

__all__ = ["BAMLAdapter"]


class BAMLAdapter(JSONAdapter):
    """As :class:`~dspy_stream.adapters.json.JSONAdapter`, for outputs with many or deep types.

    The prompt shows the form of the answer nearly as TypeScript, with the descriptions of members as
    comments, where JSONAdapter shows JSON schemas: the same in about half the characters. Types
    that hold themselves are fine. Answers are read as JSON.

    >>> from dspy_stream.program import Signature
    >>> print(BAMLAdapter().format_field_structure(Signature("text -> tags: list[str]")))
    Each input is written below a line with its marker:
    <BLANKLINE>
    [[ ## text ## ]]
    {text}
    <BLANKLINE>
    Your answer is one JSON object of this form, and nothing else:
    <BLANKLINE>
    {
      tags: string[],
    }
    """

    def format_field_description(self, signature: type[Signature]) -> str:
        """Every field with its description and constraints; the types of outputs are in the sketch."""
        fields = fields_of(signature)
        given = "\n".join(f"- {field.line}" for field in fields.inputs)
        wanted = "\n".join(
            f"- {_line(field, signature.output_fields[field.name])}" for field in fields.outputs
        )
        return f"You are given:\n{given}\n\nYou answer with:\n{wanted}"

    def format_field_structure(self, signature: type[Signature]) -> str:
        """The layout of the inputs, and the form of the answer."""
        inputs = "\n\n".join(f"{marker(name)}\n{{{name}}}" for name in signature.input_fields)
        return (
            f"Each input is written below a line with its marker:\n\n{inputs}\n\n"
            f"Your answer is one JSON object of this form, and nothing else:\n\n{sketch(signature)}"
        )


def _line(field: Bound, info: FieldInfo) -> str:
    """What an output is for; of a text also what it is, since the sketch says no more than that it is one."""
    plain = field.codec.textual and field.codec.choices is None
    return described(field.name, info, field.codec if plain else None, output=True)
