"""The history of model calls: a subscriber of their events, bounded, and how it is shown.

Every call made outside a flow is kept, with its prompt and its answer: in the history of the whole
process, of the model, and of each module it was made in. The last 10,000 are kept
(``max_history_size``), none with ``disable_history``. The calls of a flow's rows are not, since
they would take as much memory as the rows have text, unless ``history_in_flows`` is set.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TextIO, overload

from dspy_stream import configuration, events
from dspy_stream.configuration import settings
from dspy_stream.dotted import Dotted
from dspy_stream.events import Called, Event
from dspy_stream.shown import shown
from dspy_stream.types import Choice, Request, Response
from dspy_stream.usage import form_of

__all__ = ["GLOBAL_HISTORY", "History", "HistoryOf", "completion", "inspect_history", "outputs_of"]

# What a provider sent beside the text, under DSPy's names; an answer that has any becomes a dict.
_BESIDE: Final = ("logprobs", "reasoning_content", "tool_calls", "citations", "provider_fields")


class History(Sequence[dict[str, Any]]):
    """The last calls of a model, of a module or of the process, the latest at the end.

    An entry is a dict with ``prompt``, ``messages``, ``kwargs``, ``response``, ``outputs``,
    ``usage``, ``cost``, ``timestamp``, ``uuid``, ``model``, ``response_model`` and ``model_type``;
    it is made when it is looked at. An answer that the journal gave used nothing: its ``usage`` is
    empty.
    """

    __slots__ = ("_records",)

    def __init__(self) -> None:
        self._records: deque[_Record] = deque()

    def keep(self, record: _Record, most: int) -> None:
        """Add a call, and forget the oldest above ``most``."""
        self._records.append(record)
        while len(self._records) > most:
            self._records.popleft()

    def clear(self) -> None:
        """Forget all."""
        self._records.clear()

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [record.entry() for record in list(self._records)[index]]
        return self._records[index].entry()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (record.entry() for record in tuple(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (History, list)):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} calls>"


class _Made(NamedTuple):
    """One call, as it is kept."""

    model: str
    model_type: str
    prompt: str | None
    request: Request
    response: Response
    time: float


class _Record:
    """One call, and its entry once somebody has looked at it; shared by all histories it is in."""

    __slots__ = ("_entry", "_made")

    def __init__(self, made: _Made) -> None:
        self._made = made
        self._entry: dict[str, Any] | None = None

    def entry(self) -> dict[str, Any]:
        """The call in DSPy's form; the same dict each time."""
        if self._entry is None:
            self._entry = _entry(self._made)
        return self._entry


def _entry(made: _Made) -> dict[str, Any]:
    request, response = made.request, made.response
    prompted = made.prompt is not None
    options = {name: value for name, value in request.options.items() if not name.startswith("api_")}
    if request.rollout_id is not None:
        options["rollout_id"] = request.rollout_id
    return {
        "prompt": made.prompt,
        "messages": None if prompted else [message.to_json() for message in request.messages],
        "kwargs": options,
        "response": completion(response),
        "outputs": outputs_of(response, made.model_type),
        "usage": {} if response.cached else form_of(response.usage),
        "cost": None if response.cached else response.usage.cost,
        "timestamp": datetime.fromtimestamp(made.time).isoformat(),
        "uuid": str(uuid.uuid4()),
        "model": made.model,
        "response_model": response.model or made.model,
        "model_type": made.model_type,
    }


def completion(response: Response) -> Dotted:
    """The answer in the form of OpenAI's chat completions, for programs that look into it."""
    choices = []
    for number, choice in enumerate(response.choices):
        extra = {"tool_calls": None, **(choice.extra or {})}
        logprobs = extra.pop("logprobs", None)
        message = Dotted(role="assistant", content=choice.text, **extra)
        choices.append(
            Dotted(index=number, finish_reason=choice.finish_reason, message=message, logprobs=logprobs)
        )
    usage = Dotted(form_of(response.usage))
    return Dotted(
        id=response.request_id, object="chat.completion", model=response.model, choices=choices, usage=usage
    )


def outputs_of(response: Response, model_type: str = "chat") -> list[Any]:
    """The completions: texts, or dicts where more than text came; of ``responses`` always dicts."""
    made = [_output(choice) for choice in response.choices]
    if model_type == "responses":
        return made
    return [each if len(each) > 1 else each["text"] for each in made]


def _output(choice: Choice) -> dict[str, Any]:
    beside = {name: choice.extra[name] for name in _BESIDE if choice.extra.get(name)} if choice.extra else {}
    return {"text": choice.text, **beside}


GLOBAL_HISTORY: Final = History()


class HistoryOf:
    """``instance.history``: made when it is first wanted; an attribute of that name goes first."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The history of an instance."""
        if instance is None:
            return self
        return own_history(instance)


def own_history(instance: Any) -> History:
    """The history that is kept for a model or a module, under ``_history``."""
    found = getattr(instance, "_history", None)
    if found is None:
        found = History()
        object.__setattr__(instance, "_history", found)
    kept: History = found
    return kept


def _note(event: Event) -> None:
    if not isinstance(event, Called) or event.request is None or event.response is None:
        return
    if settings.disable_history or (event.row is not None and not settings.history_in_flows):
        return
    most = settings.max_history_size
    model = event.instance
    record = _Record(
        _Made(
            getattr(model, "model", event.request.model),
            getattr(model, "model_type", "chat"),
            *(event.prompt, event.request, event.response, event.time),
        )
    )
    GLOBAL_HISTORY.keep(record, most)
    for owner in (model, *event.callers):
        if isinstance(getattr(type(owner), "history", None), HistoryOf):
            own_history(owner).keep(record, most)
    replaced = getattr(model, "__dict__", {}).get("history")
    if isinstance(replaced, list):  # a model of one's own that has set `self.history = []`
        replaced.append(record.entry())


def inspect_history(n: int = 1, file: TextIO | None = None) -> None:
    """Print the last ``n`` model calls of the process: prompts and answers.

    To standard output, with colours where that is a terminal, or to ``file``.
    """
    print_history(GLOBAL_HISTORY, n, file)


def print_history(history: Sequence[Mapping[str, Any]], n: int = 1, file: TextIO | None = None) -> None:
    """Print the last ``n`` entries of a history."""
    out = file if file is not None else sys.stdout
    colours = file is None and out.isatty() and "NO_COLOR" not in os.environ
    for entry in history[-n:] if n > 0 else ():
        out.write(shown(entry, colours=colours))
    out.flush()


def _in_flows() -> None:
    events.subscribe(_note, kinds=["lm"])


events.subscribe(_note, kinds=["lm"], in_flows=False)
configuration.whenever("history_in_flows", _in_flows)
