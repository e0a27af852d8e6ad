"""Examples: records with named fields, some of which are a program's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from typing_extensions import Self

__all__ = ["Example"]

_RESERVED = "dspy_"


class Example:
    """A record whose fields are read by attribute or by item, as one row of a training set.

    ``with_inputs`` says which fields a program is given; the others are labels. Fields whose names
    begin with ``dspy_`` are stored, but not listed or counted. Two examples are equal when their
    fields are, whatever their inputs. Unlike DSPy's, an example with a list in it can be hashed, and
    a method is not overwritten by a field of its name.

    Args:
        base: a mapping or another example to start from; an example's inputs come with it.
        kwargs: further fields, which go before those of ``base``.

    Raises:
        TypeError: ``base`` is something else.

    >>> example = Example(question="2+2?", answer="4").with_inputs("question")
    >>> example.question, example["answer"], example.labels().toDict()
    ('2+2?', '4', {'answer': '4'})
    """

    # A program may keep something of its own on an example, as `example._seen = True`.
    __slots__ = ("__dict__", "_input_keys", "_store")

    _input_keys: frozenset[str] | None
    _store: dict[str, Any]

    def __init__(self, /, base: Mapping[str, Any] | Example | None = None, **kwargs: Any) -> None:
        _set(self, "_input_keys", None)
        if base is None:
            _set(self, "_store", kwargs)
        elif isinstance(base, Example):
            _set(self, "_store", {**base._store, **kwargs})
            _set(self, "_input_keys", base._input_keys)
        elif isinstance(base, Mapping):
            _set(self, "_store", {**base, **kwargs})
        else:
            raise TypeError(f"an example starts from a mapping or an example, not from {type(base).__name__}")

    def __getattr__(self, name: str) -> Any:
        # Called only when the class has no such name. A half-built object, as in copying and
        # unpickling, has no store yet.
        if name == "_store" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        try:
            return self._store[name]
        except KeyError:
            known = ", ".join(self.keys()) or "none"
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}; its fields: {known}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            _set(self, name, value)
        elif hasattr(type(self), name):
            raise AttributeError(
                f"{name!r} is a method of {type(self).__name__}; set a field of this name by item: "
                f"example[{name!r}] = ..."
            )
        else:
            self._store[name] = value

    def __delattr__(self, name: str) -> None:
        if name in self._store:
            del self._store[name]
        else:
            object.__delattr__(self, name)

    def __getitem__(self, name: str) -> Any:
        return self._store[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._store[name] = value

    def __delitem__(self, name: str) -> None:
        del self._store[name]

    def __contains__(self, name: object) -> bool:
        return name in self._store

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._store))

    def __len__(self) -> int:
        return len(self.keys())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return self._store == other._store

    def __hash__(self) -> int:
        try:
            return hash(frozenset(self._store.items()))
        except TypeError:  # lists and dicts: equal examples still have equal names
            return hash(frozenset(self._store))

    def __repr__(self) -> str:
        names = self._input_keys
        shown = names if names is None else f"{{{', '.join(map(repr, sorted(names)))}}}" if names else "set()"
        return f"{type(self).__name__}({dict(self.items())!r}) (input_keys={shown})"

    def keys(self, include_dspy: bool = False) -> list[str]:
        """Names of the fields, in the order they were given."""
        return [name for name in self._store if include_dspy or not name.startswith(_RESERVED)]

    def values(self, include_dspy: bool = False) -> list[Any]:
        """Values of the fields, in the same order."""
        return [self._store[name] for name in self.keys(include_dspy)]

    def items(self, include_dspy: bool = False) -> list[tuple[str, Any]]:
        """Names and values, in the same order."""
        return [(name, self._store[name]) for name in self.keys(include_dspy)]

    def get(self, key: str, default: Any = None) -> Any:
        """The field, or ``default``."""
        return self._store.get(key, default)

    def with_inputs(self, *keys: str) -> Self:
        """A copy in which these fields are the inputs."""
        copied = self.copy()
        copied._input_keys = frozenset(keys)
        return copied

    def inputs(self) -> Self:
        """The input fields alone.

        Raises:
            ValueError: nobody has said which they are.
        """
        names = self._inputs()
        chosen = type(self)({name: value for name, value in self._store.items() if name in names})
        chosen._input_keys = names
        return chosen

    def labels(self) -> Self:
        """The fields that are not inputs.

        Raises:
            ValueError: nobody has said which fields are inputs.
        """
        names = self._inputs()
        return type(self)({name: value for name, value in self._store.items() if name not in names})

    def copy(self, **changes: Any) -> Self:
        """A shallow copy, with some fields replaced or added."""
        return type(self)(self, **changes)

    def without(self, *names: str) -> Self:
        """A copy that lacks these fields.

        Raises:
            KeyError: one of them is not there.
        """
        copied = self.copy()
        for name in names:
            del copied[name]
        return copied

    def toDict(self) -> dict[str, Any]:
        """All fields as a dict; examples and pydantic models inside become dicts too."""
        return {name: _plain(value) for name, value in self._store.items()}

    def _inputs(self) -> frozenset[str]:
        if self._input_keys is None:
            raise ValueError(
                "Inputs have not been set for this example: say which fields they are, as in "
                "example.with_inputs('question')"
            )
        return self._input_keys


_set = object.__setattr__


def _plain(value: Any) -> Any:
    if isinstance(value, Example) or hasattr(value, "toDict"):
        return value.toDict()
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
