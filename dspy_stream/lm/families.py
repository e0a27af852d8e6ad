"""What a model's name says about it: family and generation, for rules that differ between them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Claude", "Gemini", "claude", "gemini", "is_openai_reasoning"]

_OPENAI_REASONING: Final = re.compile(r"(?:.*/)?(?:o[1345](?:-|$)|gpt-[5-9](?!\d|.*-chat))")
# ``claude-3-5-haiku-20241022`` and ``claude-haiku-4-5``: the tier has moved, a date is no minor version.
_CLAUDE: Final = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_GEMINI: Final = re.compile(r"gemini-(?:(\d{1,2})(?:\.(\d{1,2}))?-)?([a-z-]*)")


_LARGEST: Final = frozenset({"fable", "mythos"})


class Claude(NamedTuple):
    """Version of one of Anthropic's models, and its tier since 4.0; compares with a pair of numbers."""

    major: int
    minor: int
    tier: str = ""

    @property
    def thinks_always(self) -> bool:
        """It cannot be told not to think."""
        return (self.tier in _LARGEST and self >= (5, 0)) or (self.tier == "opus" and self >= (5, 5))

    @property
    def takes_no_orders(self) -> bool:
        """It cannot be made to call a tool."""
        return self.tier in _LARGEST or (self.tier in ("opus", "sonnet") and self >= (5, 5))

    @property
    def binds_thinking(self) -> bool:
        """What it thought counts only behind the very turns that it was thought after."""
        return self >= (5, 5) or (self.tier in _LARGEST and self >= (5, 1))


class Gemini(NamedTuple):
    """Version and kind (``flash``, ``pro-preview``, ...) of one of Google's models."""

    major: int
    minor: int
    kind: str

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor."""
        return self.major, self.minor


def is_openai_reasoning(model: str) -> bool:
    """Whether it is one of OpenAI's models that reason first and take other parameters.

    >>> is_openai_reasoning("gpt-6.1-sol"), is_openai_reasoning("gpt-5-chat-latest")
    (True, False)
    """
    return _OPENAI_REASONING.match(model) is not None


def claude(model: str) -> Claude | None:
    """The version of an Anthropic model; None where the name does not tell.

    >>> claude("claude-3-5-haiku-20241022"), claude("claude-sonnet-4-20250514")
    (Claude(major=3, minor=5, tier=''), Claude(major=4, minor=0, tier='sonnet'))
    """
    found = _CLAUDE.search(model)
    if found is None:
        return None
    return Claude(int(found.group(2)), int(found.group(3) or 0), found.group(1) or "")


def gemini(model: str) -> Gemini | None:
    """The version of a Google model; None where it is not a Gemini.

    A name without a number, such as ``gemini-flash-latest``, counts as 3.7, whose parameters
    later models understand too.

    >>> gemini("gemini-3-pro-preview").version, gemini("gemini-flash-latest").kind
    ((3, 0), 'flash-latest')
    """
    found = _GEMINI.search(model)
    if found is None:
        return None
    if found.group(1) is None:
        return Gemini(3, 7, found.group(3))
    return Gemini(int(found.group(1)), int(found.group(2) or 0), found.group(3))
