"""A dict whose keys are attributes too, as answers of OpenAI's clients and DSPy's settings are read."""

from __future__ import annotations

from typing import Any

__all__ = ["Dotted"]


class Dotted(dict[str, Any]):
    """A dict whose keys can be read and set as attributes.

    >>> answer = Dotted(choices=[Dotted(text="yes")])
    >>> answer.choices[0].text == answer["choices"][0]["text"] == "yes"
    True
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}; there are: {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}") from None
