"""Whether an object was made with arguments: then a worker process could not make the same by itself."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

__all__ = ["Made"]


class Made:
    """Notes that arguments were given to a class of the user's own; copies know it as well.

    >>> class Search(Made):
    ...     __module__ = "a_file_of_yours"
    ...     def __init__(self, k=3):
    ...         self.k = k
    >>> Search()._with_arguments, Search(k=5)._with_arguments
    (False, True)
    """

    _with_arguments = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A new object, not yet initialized."""
        made = super().__new__(cls)
        if (args or kwargs.keys() - {"callbacks"}) and not cls.__module__.startswith("dspy_stream."):
            made.__dict__["_with_arguments"] = True
        return made
