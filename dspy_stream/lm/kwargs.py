"""A model's options as DSPy's programs look at them."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["Kwargs"]


class Kwargs(dict[str, Any]):
    """A model's options to look at: what is not given is None where DSPy has it, and nothing can be set."""

    def __missing__(self, name: str) -> None:
        if name not in ("temperature", "max_tokens"):
            raise KeyError(name)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("a model's options are settled; use lm.copy(temperature=...) for another model")

    __setitem__ = __delitem__ = update = pop = setdefault = clear = popitem = _refuse
