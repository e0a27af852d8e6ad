"""What the model must answer: a function of its inputs, so that any wrong value can be told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

__all__ = ["answer_to"]


def answer_to(field: str, inputs: Mapping[str, str]) -> str:
    """The only right value of an output field."""
    data = json.dumps([field, sorted(inputs.items())])
    return f"{field}-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
