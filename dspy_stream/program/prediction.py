"""Predictions: what a program answers, with the other completions and what they used."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, Sequence
from typing import Any

from typing_extensions import Self

from dspy_stream.program.example import Example
from dspy_stream.program.refusals import Uneven

__all__ = ["Completions", "Prediction"]


class Prediction(Example):
    """The outputs of a module, by attribute or by item.

    A prediction with a field ``score``, as a metric returns it, counts as that number in
    ``float()``, in ``+`` and ``/``, and in ``< <= > >=``; ``==`` compares all fields.

    Raises:
        ValueError: a number is asked of a prediction without ``score``.

    >>> prediction = Prediction(answer="4")
    >>> prediction.answer, prediction["answer"]
    ('4', '4')
    >>> (Prediction(score=0.5) + Prediction(score=1)) / 2
    0.75
    """

    __slots__ = ("_completions", "_lm_usage")

    _completions: Completions | bool | None  # True: of its own fields, made when it is asked for
    _lm_usage: Any

    def __init__(self, /, base: Mapping[str, Any] | Example | None = None, **kwargs: Any) -> None:
        # Written out for the plain case: one is made for every answer.
        _set(self, "_completions", None)
        _set(self, "_lm_usage", None)
        if base is None:
            _set(self, "_input_keys", None)
            _set(self, "_store", kwargs)
        else:
            Example.__init__(self, base, **kwargs)

    @classmethod
    def of(cls, fields: dict[str, Any], *, answered: bool = False) -> Self:
        """A prediction that keeps ``fields`` itself, not a copy; any name is allowed in it.

        Where they are what a model ``answered``, they are its one completion, too.
        """
        made: Self = _create(cls)  # past the constructor: one is made for every answer
        _set_store(made, fields)
        _set_keys(made, None)
        _set_completions(made, True if answered else None)
        _set_usage(made, None)
        return made

    @classmethod
    def from_completions(
        cls, list_or_dict: Sequence[Mapping[str, Any]] | Mapping[str, list[Any]], signature: Any = None
    ) -> Self:
        """The first of several completions, which keeps them all.

        Args:
            list_or_dict: one mapping for each completion, or one list of values for each field.
            signature: kept with the completions.

        Raises:
            ValueError: the completions do not have the same fields, or there is none.

        >>> prediction = Prediction.from_completions([{"answer": "4"}, {"answer": "four"}])
        >>> prediction.answer, prediction.completions.answer
        ('4', ['4', 'four'])
        """
        completions = Completions(list_or_dict, signature)
        if len(completions) == 0:
            raise ValueError("a prediction needs at least one completion, and there is none")
        prediction = cls({name: values[0] for name, values in completions.items()})
        prediction._completions = completions
        return prediction

    @property
    def completions(self) -> Completions | None:
        """All completions; None where the prediction was not made from any."""
        found = self._completions
        if isinstance(found, bool):
            found = Completions({name: [value] for name, value in self._store.items()})
            self._completions = found
        return found

    def get_lm_usage(self) -> Any:
        """What the model calls used, as it was set; None where nobody counted."""
        return self._lm_usage

    def set_lm_usage(self, value: Any) -> None:
        """Keep what the model calls used."""
        self._lm_usage = value

    def __repr__(self) -> str:
        lines = [f"{name}={value!r}" for name, value in self._store.items()]
        more = len(self._completions) - 1 if isinstance(self._completions, Completions) else 0
        if more > 0:
            lines.append("completions=Completions(...)")
        end = f" ({more} completions omitted)" if more > 0 else ""
        return f"{type(self).__name__}(\n    {_LINES.join(lines)}\n){end}"

    def __float__(self) -> float:
        try:
            return float(self._store["score"])
        except KeyError:
            raise ValueError(
                f"Prediction object does not have a 'score' field, so it is no number; it has {self.keys()}"
            ) from None

    def __add__(self, other: object) -> float:
        number = _number(other)
        return NotImplemented if number is None else float(self) + number

    __radd__ = __add__

    def __truediv__(self, other: object) -> float:
        number = _number(other)
        return NotImplemented if number is None else float(self) / number

    def __rtruediv__(self, other: object) -> float:
        number = _number(other)
        return NotImplemented if number is None else number / float(self)

    def __lt__(self, other: object) -> bool:
        number = _number(other)
        return NotImplemented if number is None else float(self) < number

    def __le__(self, other: object) -> bool:
        number = _number(other)
        return NotImplemented if number is None else float(self) <= number

    def __gt__(self, other: object) -> bool:
        number = _number(other)
        return NotImplemented if number is None else float(self) > number

    def __ge__(self, other: object) -> bool:
        number = _number(other)
        return NotImplemented if number is None else float(self) >= number


class Completions:
    """Several completions of one question: ``c[0]`` is one, ``c["field"]`` is a field of all.

    Raises:
        ValueError: the completions do not all have the same fields.

    >>> completions = Completions({"answer": ["4", "four"]})
    >>> completions[1].answer, completions.answer, len(completions)
    ('four', ['4', 'four'], 2)
    """

    __slots__ = ("_fields", "signature")

    _fields: dict[str, list[Any]]

    def __init__(
        self, list_or_dict: Sequence[Mapping[str, Any]] | Mapping[str, list[Any]], signature: Any = None
    ) -> None:
        self.signature = signature
        if isinstance(list_or_dict, Mapping):
            self._fields = dict(list_or_dict)
        else:
            self._fields = _columns(list_or_dict)
        for name, values in self._fields.items():
            if not isinstance(values, list):
                raise Uneven(f"All values must be lists, one value a completion; field `{name}` is not")
            if len(values) != len(self):
                raise Uneven(
                    f"All lists must have the same length; field `{name}` has {len(values)} values, "
                    f"the first field {len(self)}"
                )

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"Index out of range: {key}, and there are {len(self)} completions")
            return Prediction({name: values[key] for name, values in self._fields.items()})
        if not isinstance(key, str):
            raise TypeError(f"completions are taken by their number or by a field's name, not by {key!r}")
        return self._fields[key]

    def __getattr__(self, name: str) -> list[Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            known = ", ".join(self._fields) or "none"
            raise AttributeError(
                f"'Completions' object has no attribute {name!r}; the fields are: {known}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()), ()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completions):
            return NotImplemented
        return self._fields == other._fields

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [f"{name}={values!r}" for name, values in self._fields.items()]
        return f"Completions(\n    {_LINES.join(lines)}\n)"

    def items(self) -> ItemsView[str, list[Any]]:
        """Names of the fields and their values in all completions."""
        return self._fields.items()


_set = object.__setattr__
_create: Any = object.__new__
_set_store, _set_keys = (Example.__dict__[name].__set__ for name in ("_store", "_input_keys"))
_set_completions, _set_usage = (Prediction.__dict__[name].__set__ for name in ("_completions", "_lm_usage"))
_LINES = ",\n    "


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)):
        return value
    return float(value) if isinstance(value, Prediction) else None


def _columns(completions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    fields: dict[str, list[Any]] = {name: [] for completion in completions[:1] for name in completion}
    for number, completion in enumerate(completions, 1):
        if completion.keys() != fields.keys():
            odd = ", ".join(sorted(set(fields) ^ set(completion)))
            raise Uneven(f"completion {number} differs from the first in its fields: {odd}")
        for name, value in completion.items():
            fields[name].append(value)
    return fields
