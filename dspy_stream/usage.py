"""What the model calls of a block of code used: trackers, and who tells them.

A tracker counts the calls that were paid for while it is in force. Answers from a journal, and
those of another row's call, used nothing and are not counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from dspy_stream.types import Response, Usage

__all__ = ["TRACKER", "UsageTracker", "note", "track_usage"]

_KEPT: Final = 10_000  # single calls of a model that a tracker remembers


class UsageTracker:
    """Calls and tokens by model, of one ``with track_usage()``.

    >>> tracker = UsageTracker()
    >>> tracker.add("openai/gpt-4o-mini", Usage(10, 2))
    >>> tracker.get_total_tokens()
    {'openai/gpt-4o-mini': {'prompt_tokens': 10, 'completion_tokens': 2, 'total_tokens': 12}}
    """

    __slots__ = ("calls", "models", "outer", "recent")

    def __init__(self, outer: UsageTracker | None = None) -> None:
        self.outer = outer
        self.calls: dict[str, int] = {}
        self.models: dict[str, Usage] = {}
        self.recent: dict[str, deque[Usage]] = {}

    def add(self, model: str, usage: Usage) -> None:
        """Count one call, here and in every tracker around this one."""
        tracker: UsageTracker | None = self
        while tracker is not None:
            tracker.calls[model] = tracker.calls.get(model, 0) + 1
            known = tracker.models.get(model)
            tracker.models[model] = usage if known is None else known + usage
            tracker.recent.setdefault(model, deque(maxlen=_KEPT)).append(usage)
            tracker = tracker.outer

    def add_usage(self, lm: str, usage_entry: Mapping[str, Any]) -> None:
        """The same for tokens in OpenAI's form, as a model of one's own may count them; and for ``cost``."""
        if usage_entry:
            self.add(
                lm,
                Usage(
                    usage_entry.get("prompt_tokens") or 0,
                    usage_entry.get("completion_tokens") or 0,
                    usage_entry.get("cost"),
                    _detail(usage_entry, "prompt_tokens_details", "cached_tokens"),
                    _detail(usage_entry, "completion_tokens_details", "reasoning_tokens"),
                ),
            )

    @property
    def usage_data(self) -> dict[str, list[dict[str, Any]]]:
        """The calls of each model, in order, in OpenAI's form; the last 10,000, whatever was counted."""
        return {model: [form_of(usage) for usage in calls] for model, calls in self.recent.items()}

    @property
    def cost(self) -> float | None:
        """US dollars of the calls whose price is known; None where none is."""
        known = [usage.cost for usage in self.models.values() if usage.cost is not None]
        return sum(known) if known else None

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """Tokens by model, in OpenAI's form; details only where there were any."""
        return {model: form_of(usage) for model, usage in self.models.items()}


def _detail(entry: Mapping[str, Any], group: str, name: str) -> int:
    details = entry.get(group) or {}  # a mapping, or an object with attributes
    found = details.get(name) if isinstance(details, Mapping) else getattr(details, name, None)
    return found or 0


def form_of(usage: Usage) -> dict[str, Any]:
    """Tokens in OpenAI's form; details only where there were any."""
    made: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens:
        made["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return made


TRACKER: Final[ContextVar[UsageTracker | None]] = ContextVar("dspy_stream_usage", default=None)


@contextmanager
def track_usage() -> Iterator[UsageTracker]:
    """Count what the calls inside the block use; also in the tasks that it starts.

    Blocks may be nested: what an inner one counts, the outer one counts too.

    >>> with track_usage() as tracker:
    ...     note("openai/gpt-4o-mini", Response((), Usage(3, 1)))
    ...     note("openai/gpt-4o-mini", Response((), Usage(3, 1), cached=True))
    >>> tracker.calls
    {'openai/gpt-4o-mini': 1}
    """
    tracker = UsageTracker(TRACKER.get())
    token = TRACKER.set(tracker)
    try:
        yield tracker
    finally:
        TRACKER.reset(token)


def note(model: str, response: Response) -> None:
    """Tell the tracker in force, if there is one, of an answer; one from a journal used nothing."""
    tracker = TRACKER.get()
    if tracker is not None and not response.cached:
        tracker.add(model, response.usage)
