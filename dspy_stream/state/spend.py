"""What a run has paid for, kept exactly: whole tokens and whole trillionths of a dollar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import orjson

from dspy_stream.types import Usage

__all__ = ["Spend"]

# A token can cost less than a millionth of a dollar, and floats do not add up exactly.
_PICO: Final = 10**12
_LARGEST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Spend:
    """Totals over finished calls. ``cost_pico`` is in 1e-12 US dollars.

    >>> Spend().plus(Usage(10, 2, 0.0000031)).plus(None).to_bytes()
    b'{"calls":2,"prompt_tokens":10,"completion_tokens":2,"cost_pico":3100000}'
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_pico: int = 0

    @property
    def cost(self) -> float:
        """US dollars."""
        return self.cost_pico / _PICO

    def plus(self, usage: Usage | None) -> Spend:
        """These totals and one more call; None where nothing is known of its tokens."""
        if usage is None:
            return Spend(self.calls + 1, self.prompt_tokens, self.completion_tokens, self.cost_pico)
        return Spend(
            self.calls + 1,
            _within(self.prompt_tokens + max(0, usage.prompt_tokens)),
            _within(self.completion_tokens + max(0, usage.completion_tokens)),
            _within(self.cost_pico + _pico(usage.cost)),
        )

    def to_bytes(self) -> bytes:
        """The stored form, JSON."""
        return orjson.dumps(self)

    @staticmethod
    def from_bytes(data: bytes) -> Spend:
        """Read the stored form back.

        Raises:
            ValueError: the bytes are not totals.
        """
        value = orjson.loads(data)
        try:
            spend = Spend(**value)
        except TypeError as error:
            raise ValueError(f"not a spend record: {error}") from error
        numbers = (spend.calls, spend.prompt_tokens, spend.completion_tokens, spend.cost_pico)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("not a spend record: totals are whole numbers, zero or more")
        return spend


def _pico(cost: float | None) -> int:
    if cost is None or not math.isfinite(cost) or cost <= 0:
        return 0
    return round(min(cost, _LARGEST / _PICO) * _PICO)


def _within(total: int) -> int:
    # What a provider claims must not overflow the record; a total this large is a lie anyway.
    return min(total, _LARGEST)
