"""Numbers and truth values, as models write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from dspy_stream.adapters.problem import ValueProblem, excerpt, unwrapped
from dspy_stream.adapters.scan import MAX_DIGITS, exact_number

__all__ = ["SCALARS", "SIMPLE"]

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_THOUSANDS: Final = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+")
_GROUPED: Final = re.compile(_THOUSANDS.pattern + r"(?:\.[0-9]*)?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTH: Final = {
    **dict.fromkeys(("true", "yes", "y", "1", "t", "on"), True),
    **dict.fromkeys(("false", "no", "n", "0", "f", "off"), False),
}


def _boolean(text: str) -> bool:
    value = _TRUTH.get(unwrapped(text).casefold())
    if value is None:
        raise ValueProblem(f"{excerpt(text)} is neither true nor false")
    return value


def _integer(text: str) -> Any:
    if not _INTEGER.fullmatch(text):
        plain = unwrapped(text)
        if _THOUSANDS.fullmatch(plain):
            plain = plain.replace(",", "")
        if not _INTEGER.fullmatch(plain):
            # 4.0 is a whole number too; whether it is one is for the validator to say.
            return _float(text, "a whole number")
        text = plain
    if len(text) > MAX_DIGITS and len(text.lstrip("+-")) > MAX_DIGITS:
        raise ValueProblem(f"a whole number of {len(text)} digits is too long")
    return int(text)


def _float(text: str, expected: str = "a finite number") -> float:
    plain = unwrapped(text)
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    if len(plain) > MAX_DIGITS * 2 or not _NUMBER.fullmatch(plain):
        raise ValueProblem(f"{excerpt(text)} is not {expected}")
    value = float(plain)
    if not math.isfinite(value):
        raise ValueProblem(f"{excerpt(text)} is too large for a number")
    return value


def _decimal(text: str) -> Decimal:
    plain = unwrapped(text)
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    if not _NUMBER.fullmatch(plain):
        raise ValueProblem(f"{excerpt(text)} is not a finite number")
    try:
        return exact_number(plain)
    except ValueError as error:
        raise ValueProblem(str(error)) from None


SCALARS: Final[dict[Any, Callable[[str], Any]]] = {
    bool: _boolean,
    int: _integer,
    float: _float,
    Decimal: _decimal,
}
SIMPLE: Final = (str, bool, int, float)
