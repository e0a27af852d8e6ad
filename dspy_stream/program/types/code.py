"""Code: source text of a known language, without the fences that models put around it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, ClassVar, Final

from typing_extensions import Self

from dspy_stream.program.types.base import Text

__all__ = ["Code", "of_language"]

_LANGUAGE: Final = re.compile(r"[\w#+.\-]{1,40}")
_OPEN: Final = re.compile(r"^(`{3,}|~{3,})[ \t]*([\w#+.\-]*)[^\n`]*\n", re.MULTILINE)


class Code(Text):
    r"""Source code: a ``str`` with a ``language``; write ``Code["java"]`` for another than Python.

    Code that a model wrote in a fence is taken out of it: of several fences the first, with any
    prose around it left out. Text without a fence at the beginning of a line is code as it is.
    Code is never run by being read.

    >>> code = Code["sql"]("Here it is:\n```sql\nSELECT 1\n```\nDone.")
    >>> code.code, code.language, code == "SELECT 1"
    ('SELECT 1', 'sql', True)
    """

    __slots__ = ()

    language: ClassVar[str] = "python"
    _field = "code"

    def __new__(cls, code: str = "") -> Self:  # noqa: D102
        return super().__new__(cls, _unfenced(str(code)))

    def __class_getitem__(cls, language: Any) -> type[Code]:
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise TypeError(f"Code takes the name of a language, as in Code['python'], not {language!r}")
        return of_language(language)

    @property
    def code(self) -> str:
        """The text alone."""
        return str(self)

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return f"{cls.language} code, and nothing else"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (None if type(self) is Code else self.language, str(self))


@lru_cache(maxsize=256)
def of_language(language: str) -> type[Code]:
    """The type of code in a language; the same one each time."""
    body = {"__slots__": (), "__module__": __name__, "language": language, "__doc__": f"{language} code."}
    return type(f"Code[{language}]", (Code,), body)


def _restored(language: str | None, text: str) -> Code:
    """A copied or unpickled value, its text as it was."""
    kind = Code if language is None else of_language(language)
    return str.__new__(kind, text)


def _unfenced(text: str) -> str:
    """The code without its fence; again, where it is fenced twice, so that reading twice changes nothing."""
    while True:
        opening = _OPEN.search(text)
        if opening is None:
            return text
        body = text[opening.end() :]
        fence = opening.group(1)
        close = re.search(rf"^{fence}+[ \t]*\r?$", body, re.MULTILINE)
        text = (body[: close.start()] if close is not None else body).strip("\r\n")
