"""A run that follows the settings: another model or adapter for what has not begun yet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspy_stream import events
from dspy_stream.errors import DSPyStreamError
from dspy_stream.modules.scope import Scope
from dspy_stream.stream import nodes
from dspy_stream.stream.checks import check_models
from dspy_stream.stream.compile import Settings, step_ids
from dspy_stream.stream.work import ModuleWork

if TYPE_CHECKING:
    from dspy_stream.adapters import Adapter
    from dspy_stream.lm.base import Model
    from dspy_stream.stream.job import Job
    from dspy_stream.stream.nodes import Node
    from dspy_stream.stream.terminal import Terminal

__all__ = ["following"]

_FOLLOWED = frozenset({"lm", "adapter"})
_log = logging.getLogger("dspy_stream")

Look = Callable[[], "tuple[Model | None, Adapter]"]
Note = Callable[[Mapping[str, Any], "Model | None", "Adapter"], None]


@contextmanager
def following(
    job: Job, settings: Settings, ends: Sequence[tuple[Node, Terminal]], *, look: Look, note: Note
) -> Iterator[None]:
    """While the block runs, ``configure(lm=...)`` and ``configure(adapter=...)`` reach the run.

    Rows that have not begun, and further attempts at rows that have failed, then use them in every
    step whose predictors name no model of their own; a row at work ends as it began. A model that
    cannot be used is refused with a warning, and the run goes on as before.

    Args:
        look: the model and the adapter in force for the run; called in the context of the block.
        note: keeps what has changed: by name what was and what is, and the model and adapter now.
    """
    follower = _Follower(job, settings, ends, look, note)
    stop = events.subscribe(follower.heard, kinds=["settings"], in_flows=False)
    try:
        yield
    finally:
        stop()


class _Follower:
    def __init__(
        self, job: Job, settings: Settings, ends: Sequence[tuple[Node, Terminal]], look: Look, note: Note
    ) -> None:
        self._job = job
        self._settings = settings
        self._ends = ends
        self._context = copy_context()
        self._look = look
        self._note = note
        self._now = look()
        self._lock = threading.Lock()

    def heard(self, event: Any) -> None:
        """Take over what concerns the run; in the thread that has changed the settings."""
        if not _FOLLOWED & event.changed.keys():
            return
        with self._lock:
            try:
                self._take()
            except DSPyStreamError as error:
                _log.warning("flow %s goes on with its model and adapter: %s", self._job.flow, error)

    def _take(self) -> None:
        lm, adapter = self._context.copy().run(self._look)
        old_lm, old_adapter = self._now
        changed = {}
        if lm is not None and lm != old_lm:
            changed["lm"] = [_named(old_lm), _named(lm)]
        if adapter is not old_adapter:
            changed["adapter"] = [type(old_adapter).__name__, type(adapter).__name__]
        if not changed:
            return
        lm = lm if lm is not None else old_lm
        check_models(self._ends, replace(self._settings, lm=lm, adapter=adapter), self._job)
        self._note(changed, lm, adapter)
        ids, job = step_ids([end for end, _ in self._ends]), self._job
        with job._lock:
            self._now = job.models = (lm, adapter)
            for end, _ in self._ends:
                for node in end.chain():
                    pool = job.pools.get(ids[id(node)])
                    if pool is not None and isinstance(node.operation, nodes.Through):
                        assert isinstance(pool.work, ModuleWork)
                        clients = job.clients_for(node.operation.lane, self._settings.outage)
                        pool.work.scope = Scope(clients, lm=lm, adapter=adapter)
        said = ", ".join(f"{name} {new}, not {old}" for name, (old, new) in changed.items())
        _log.info("flow %s: rows that begin from now on have %s", job.flow, said)


def _named(lm: Model | None) -> str:
    return lm.model if lm is not None else "none"
