"""Callbacks, with DSPy's names: objects that hear of calls as they begin and end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from dspy_stream import configuration, events
from dspy_stream.events import Ended, Event, Kind, Started

__all__ = ["BaseCallback"]

_log = logging.getLogger("dspy_stream")


class BaseCallback:
    """Hears of calls: override what you want to hear, and name it in ``callbacks=[...]``.

    ``configure(callbacks=[...])`` is for the whole process, ``context(callbacks=[...])`` for a
    block of code, and ``callbacks=[...]`` of a module or a model for that one alone.

    Calls that are made at the same time overlap, also those of one row of a flow: each is told when it
    happens, as a part of the call around it. A handler runs in the thread of the call and must not
    wait. What it raises is logged, and the program goes on. ``call_id`` is the same at a call's start
    and end; :data:`~dspy_stream.events.ACTIVE_CALL_ID` holds the id of the call around it. At the end
    ``outputs`` is None where the call raised ``exception``.

    >>> class Loud(BaseCallback):
    ...     def on_tool_start(self, call_id, instance, inputs):
    ...         print("uses", instance.name, inputs["kwargs"])
    >>> from dspy_stream.program.types import Tool
    >>> with configuration.context(callbacks=[Loud()]):
    ...     Tool(lambda x: x + 1, name="add_one", arg_types={"x": int})(x=1)
    uses add_one {'x': 1}
    2
    """

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A module is called; ``inputs`` has ``args`` and ``kwargs``, in a dict of the callback's own."""

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """It has returned, or raised."""

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A model is asked; ``inputs`` has ``prompt``, ``messages`` and ``kwargs``."""

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """It has answered, or failed; ``outputs`` is a list of completions."""

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A prompt is written; ``inputs`` has ``signature``, ``demos`` and ``inputs``."""

    def on_adapter_format_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """It is written; ``outputs`` is the list of messages."""

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An answer is read; ``inputs`` has ``signature`` and ``completion``."""

    def on_adapter_parse_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """It is read; ``outputs`` maps the fields to their values."""

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A tool is called; ``inputs`` has ``kwargs``."""

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """It has returned, or raised."""

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A program is evaluated."""

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """The evaluation is over."""

    def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A program is optimized."""

    def on_compile_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """The optimization is over."""

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Code is run; ``inputs`` has ``code`` and ``variables``."""

    def on_interpreter_execute_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """It is done; ``outputs`` is what it printed or gave, or a FinalOutput."""

    def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Code calls a tool of the host; ``inputs`` has ``tool_name``, ``args`` and ``kwargs``."""

    def on_interpreter_tool_call_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """The tool has returned, or raised."""

    def on_interpreter_startup_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An interpreter's session begins."""

    def on_interpreter_startup_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """It has begun, or cannot."""

    def on_interpreter_shutdown_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An interpreter's session is to end."""

    def on_interpreter_shutdown_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """It has been told."""


_HANDLERS: Final[Mapping[Kind, tuple[str, str]]] = {
    "module": ("on_module_start", "on_module_end"),
    "lm": ("on_lm_start", "on_lm_end"),
    "adapter_format": ("on_adapter_format_start", "on_adapter_format_end"),
    "adapter_parse": ("on_adapter_parse_start", "on_adapter_parse_end"),
    "tool": ("on_tool_start", "on_tool_end"),
    "evaluate": ("on_evaluate_start", "on_evaluate_end"),
    "compile": ("on_compile_start", "on_compile_end"),
    "interpreter_execute": ("on_interpreter_execute_start", "on_interpreter_execute_end"),
    "interpreter_tool_call": ("on_interpreter_tool_call_start", "on_interpreter_tool_call_end"),
    "interpreter_startup": ("on_interpreter_startup_start", "on_interpreter_startup_end"),
    "interpreter_shutdown": ("on_interpreter_shutdown_start", "on_interpreter_shutdown_end"),
}


def _dispatch(event: Event) -> None:
    """Call the handlers of the callbacks in force and of the instance's own."""
    if not isinstance(event, (Started, Ended)):
        return
    own = getattr(event.instance, "callbacks", None) or ()
    common = configuration.settings.callbacks or ()
    for callback in [*common, *own]:
        name = _HANDLERS[event.kind][isinstance(event, Ended)]
        handler = getattr(callback, name, None)
        if handler is None:
            continue
        try:
            if isinstance(event, Started):
                handler(call_id=event.id, instance=event.instance, inputs=_of_its_own(event.inputs))
            else:
                handler(call_id=event.id, outputs=event.outputs, exception=event.exception)
        except Exception as error:  # noqa: BLE001 - a callback's fault is not the program's
            _log.warning("%s.%s failed: %s: %s", type(callback).__name__, name, type(error).__name__, error)


def _of_its_own(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs for a callback, which may take out of them what it likes; the call keeps its own.

    >>> given = {"kwargs": {"question": "q"}}
    >>> _of_its_own(given)["kwargs"].clear()
    >>> given
    {'kwargs': {'question': 'q'}}
    """
    return {name: value.copy() if type(value) in (dict, list) else value for name, value in inputs.items()}


events.tell_with(_dispatch)
