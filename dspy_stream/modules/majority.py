"""majority: the answer that most completions agree on."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import orjson

from dspy_stream.program import Completions, Prediction
from dspy_stream.program.jsonable import to_jsonable

__all__ = ["default_normalize", "majority"]

_ARTICLES: Final = frozenset({"a", "an", "the"})
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def default_normalize(value: Any) -> Any:
    """What is compared of an answer: its words without case, punctuation and articles; None for no words.

    Values that are no text are compared as they are.

    >>> default_normalize("The  Eiffel Tower!"), default_normalize("..."), default_normalize(7)
    ('eiffel tower', None, 7)
    """
    if not isinstance(value, str):
        return value
    plain = unicodedata.normalize("NFD", value).lower().translate(_NO_PUNCTUATION)
    return " ".join(word for word in plain.split() if word not in _ARTICLES) or None


def majority(
    prediction_or_completions: Prediction | Completions | Sequence[Mapping[str, Any] | Prediction],
    normalize: Callable[[Any], Any] | None = default_normalize,
    field: str | None = None,
) -> Prediction:
    """The first completion whose answer is the most common one; of equally common ones the earliest.

    Args:
        prediction_or_completions: a prediction with its completions, completions, or a list of
            predictions or mappings.
        normalize: what is compared of an answer; an answer for which it gives None does not count,
            unless that is all there is. None compares the answers as they are.
        field: the field that is compared; the signature's last output, or the last field.

    Raises:
        ValueError: there is nothing to choose from, or a completion lacks the field.

    >>> answers = [{"answer": "Paris"}, {"answer": "paris."}, {"answer": "Rome"}]
    >>> majority(answers).answer
    'Paris'
    """
    found, signature = _completions(prediction_or_completions)
    if not found:
        raise ValueError("there are no completions to choose from")
    name = field or (list(signature.output_fields) if signature is not None else _names(found[0]))[-1]
    keys = [_comparable(_value(each, name, number), normalize) for number, each in enumerate(found, 1)]
    counted = [key for key in keys if key is not None] or keys
    counts: dict[Hashable, int] = {}
    for key in counted:
        counts[key] = counts.get(key, 0) + 1
    best = max(counts, key=counts.__getitem__)
    return Prediction.from_completions([dict(_items(found[keys.index(best)]))], signature)


def _completions(given: Any) -> tuple[list[Any], Any]:
    """The completions one by one, and the signature where they know it."""
    if isinstance(given, Prediction):
        if given.completions is None:
            raise ValueError("this prediction has a single completion; pass several, or ask with n=...")
        given = given.completions
    if isinstance(given, Completions):
        return [given[number] for number in range(len(given))], given.signature
    if isinstance(given, (list, tuple)):
        return list(given), None
    raise TypeError(f"pass a prediction, completions, or a list of them, not {type(given).__name__}")


def _items(completion: Any) -> Any:
    return completion.items()


def _names(completion: Any) -> list[str]:
    names = [name for name, _ in _items(completion)]
    if not names:
        raise ValueError("the first completion has no field")
    return names


def _value(completion: Any, name: str, number: int) -> Any:
    try:
        return completion[name]
    except KeyError:
        known = ", ".join(_names(completion))
        raise ValueError(f"completion {number} has no field `{name}`; it has: {known}") from None


def _comparable(value: Any, normalize: Callable[[Any], Any] | None) -> Hashable:
    """A key that is the same for equal answers; lists and objects are compared by their JSON."""
    made = normalize(value) if normalize is not None else value
    try:
        hash(made)
    except TypeError:
        return ("json", orjson.dumps(to_jsonable(made), option=orjson.OPT_SORT_KEYS))
    # True and 1 are equal and would be counted together.
    return None if made is None else (type(made), made)
