"""The fields of one signature, each with what is needed to describe, write and read it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from dspy_stream.adapters.hints import described
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.values import Codec, codec_for
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature

__all__ = ["Bound", "Fields", "fields_of"]


@dataclass(frozen=True, eq=False, slots=True)
class Bound:
    """One field.

    Attributes:
        name: its name.
        codec: how its values travel.
        line: its description for the system message, beginning with its name.
        may_omit: whether it has a value of its own when none is given.
    """

    name: str
    codec: Codec
    line: str
    may_omit: bool

    def given_in(self, values: Mapping[str, Any]) -> bool:
        """Whether ``values`` has this field; None counts only where the type admits it."""
        return self.name in values and (values[self.name] is not None or self.codec.nullable)


@dataclass(frozen=True, eq=False, slots=True)
class Fields:
    """Inputs and outputs, in the order of the signature."""

    inputs: tuple[Bound, ...]
    outputs: tuple[Bound, ...]

    def written(
        self, values: Mapping[str, Any], missing: str | None, write: Callable[[Codec, Any], Any]
    ) -> dict[str, Any]:
        """What ``write`` makes of each output, and ``missing``, unless it is None, for those not there.

        Raises:
            AdapterRenderError: a value cannot be written.
        """
        made: dict[str, Any] = {}
        for field in self.outputs:
            if field.given_in(values):
                try:
                    made[field.name] = write(field.codec, values[field.name])
                except ValueProblem as problem:
                    raise AdapterRenderError(f"output field `{field.name}`: {problem}") from None
            elif missing is not None:
                made[field.name] = missing
        return made


_KNOWN: weakref.WeakKeyDictionary[type[Signature], Fields] = weakref.WeakKeyDictionary()


def fields_of(signature: type[Signature]) -> Fields:
    """The compiled fields of a signature; made at the first call and kept as long as it lives.

    Raises:
        SignatureError: a field's type cannot be checked.
    """
    found = _KNOWN.get(signature)
    if found is None:
        found = Fields(
            tuple(_bind(signature, *item, output=False) for item in signature.input_fields.items()),
            tuple(_bind(signature, *item, output=True) for item in signature.output_fields.items()),
        )
        _KNOWN[signature] = found
    return found


def _bind(signature: type[Signature], name: str, field: FieldInfo, *, output: bool) -> Bound:
    constrained = bool(field.metadata) or field.discriminator is not None
    codec = codec_for(field.annotation, signature.validator(name), constrained=constrained)
    return Bound(name, codec, described(name, field, codec, output=output), signature.may_omit(name))
