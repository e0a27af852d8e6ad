"""The worker's side: makes the module, runs one row after the other, asks the parent what models say.

The main thread runs the user's code. A thread of its own reads the pipe: it hands out rows and answers,
and ends the process when the parent is gone, whatever the user's code is doing.
"""

from __future__ import annotations

import inspect
import os
import queue
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any, NamedTuple

from dspy_stream import configuration, runtime
from dspy_stream.engine import Ticket
from dspy_stream.errors import ConfigurationError, RowError
from dspy_stream.modules.blueprint import construct
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.hosts import close_all, of_process
from dspy_stream.modules.member import OWNED
from dspy_stream.modules.module import Module
from dspy_stream.modules.noted import noted
from dspy_stream.modules.opening import seconds_to_close, when_late
from dspy_stream.modules.part import as_part
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import Frame
from dspy_stream.modules.process.remote import ROW_NUMBER, Asking, Elsewhere, Pipe, RemoteClients, RemoteModel
from dspy_stream.modules.process.scopes import ADAPTERS, same_contract
from dspy_stream.modules.process.workers import OUT_OF_MEMORY
from dspy_stream.modules.running import record_of
from dspy_stream.modules.scope import HINTS, SCOPE, TICKET, TRACE, Attempt, Scope
from dspy_stream.modules.supervision import holds_resources
from dspy_stream.modules.typed import learn_kinds
from dspy_stream.modules.walking import asked_by
from dspy_stream.program import PredictorParameters
from dspy_stream.program.carried import pack, unpack
from dspy_stream.program.marked import formless, is_plain

__all__ = ["Child"]


class _Taken(NamedTuple):
    """A scope, the model in force, and the predictors' own models by their names."""

    scope: Scope
    default: RemoteModel | None
    models: dict[str, RemoteModel | None]


class Child:
    """A worker process: ``serve`` is all it does.

    Args:
        source: descriptor to read frames from.
        sink: descriptor to write frames to.
        find: finds what makes the module: from the ``origin`` of the first frame.
        adopt: makes a module of this package of what was made, where it is of another framework.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        find: Callable[[Mapping[str, Any]], Any],
        adopt: Callable[[Any], Any] = lambda made: made,
    ) -> None:
        self._adopt = adopt
        self._pipe = Pipe(source, sink)
        self._asking = Asking(self._pipe)
        self._find = find
        self._work: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._scopes: dict[int, _Taken | Exception] = {}
        self._module: Module = Module()
        self._failures: tuple[type[BaseException], ...] = ()

    def serve(self) -> None:
        """Work until the parent says that it is enough, or is gone."""
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        of_process().on_restart = self._restarted
        begin = self._work.get()
        with when_late(
            begin.head["seconds"], lambda where: self._pipe.write({"kind": "late", "where": where})
        ):
            started = self._start(begin)
        if not started:
            return
        while True:
            said = self._work.get()
            if said.head["kind"] == "close":
                self._closed()
                return
            if said.head["kind"] == "scope":
                self._take_scope(said)
            else:
                self._run(said)

    def _restarted(self, part: str, reason: str) -> None:
        self._pipe.write({"kind": "restarted", "part": part, "reason": reason})

    def _read(self) -> None:
        while found := self._pipe.read():
            for said in found:
                if said.head["kind"] in ("answer", "refused"):
                    self._asking.heard(said)
                else:
                    self._work.put(said)
        os._exit(0)  # the parent is gone, and nobody waits for what the row would come to

    # ------------------------------------------------------------------------------- start and end

    def _start(self, said: Frame) -> bool:
        try:
            origin = said.head["origin"]
            blueprint = origin["blueprint"]
            found = construct(blueprint) if blueprint is not None else self._find(said.head)
            module = self._made(found, makes=origin["makes"])
        except Exception as error:  # noqa: BLE001 - the user's own code; the parent says what went wrong
            where = told.raised(error).get("where", "")
            message = f"{type(error).__name__}: {error} ({where})"
            self._pipe.write({"kind": "unmade", "message": message})
            return False
        try:
            if holds_resources(module):
                _finished(module.open)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - a failure of the part, which its supervisor judges
            self._pipe.write({"kind": "unopened", **told.raised(error)})
            return False
        learn_kinds(module)
        self._module = module
        self._failures = tuple(getattr(module, "failures", ()))
        self._pipe.write({"kind": "ready", "predictors": [name for name, _ in module.named_predictors()]})
        return True

    def _made(self, found: Any, *, makes: bool) -> Module:
        made = found() if makes and not isinstance(found, Module) else found
        return as_part(self._adopt(made), "what a factory makes").module

    def _closed(self) -> None:
        if holds_resources(self._module):
            try:
                _finished(self._module.close)  # type: ignore[attr-defined]
            except Exception:  # noqa: BLE001, S110 - the process ends, and what it holds with it
                pass
        close_all()

    def _take_scope(self, said: Frame) -> None:
        try:
            self._scopes[said.head["number"]] = self._scope(said)
        except Exception as error:  # noqa: BLE001 - raised again for each row that is to run under it
            self._scopes[said.head["number"]] = error

    def _scope(self, said: Frame) -> _Taken:
        head, demos = said.head, unpack(said.body)
        models = [
            RemoteModel(model, Elsewhere(self._asking, number)) for number, model in enumerate(head["models"])
        ]
        default = models[head["default"]] if head["default"] is not None else None
        if head["states"]:
            self._take_states(head["states"])
        parameters = {}
        own: dict[str, RemoteModel | None] = {}
        for name, predictor in self._module.named_predictors():
            given = head["predictors"][name]
            same_contract(name, predictor.signature, given["contract"])
            learned = PredictorParameters(given["instructions"], (), given["config"])
            parameters[id(predictor)] = _with(learned, demos[name])
            own[name] = predictor.lm = models[given["lm"]] if given["lm"] is not None else None
        name, options = head["adapter"] if head["adapter"] is not None else (None, {})
        adapter = ADAPTERS[name](**options) if name is not None else None
        scope = Scope(RemoteClients(None), lm=default, adapter=adapter, parameters=parameters)
        if head["attempt"] is not None:
            scope.attempt = Attempt(*head["attempt"])
        # Made now: the next scope may give a predictor another model of its own.
        for predictor in self._module.predictors():
            if predictor.lm is not None or default is not None:
                predictor._plan(scope, None)
        return _Taken(scope, default, own)

    def _take_states(self, states: Mapping[str, Any]) -> None:
        """What programs of another framework have learned."""
        parts: dict[str, Any] = dict(self._module.named_sub_modules())
        try:
            for name, state in states.items():
                parts[name].take_state(state)
        except (LookupError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"a worker process made a program that cannot take over what was learned here ({error!r}); "
                "see that the factory makes the same program"
            ) from error

    # ------------------------------------------------------------------------------------- one row

    def _run(self, said: Frame) -> None:
        self._pipe.write({"kind": "begun"})
        head = said.head
        found = self._scopes[head["scope"]]
        ticket = told.ticket_untold(head["ticket"])
        calls: list[Any] | None = [] if head["trace"] else None
        self._asking.begin(head["row"])

        def run() -> Any:
            if isinstance(found, Exception):
                raise found
            configuration.configure(lm=found.default, adapter=found.scope.adapter)
            self._enter(found, head)
            ROW_NUMBER.set(head["row"])
            OWNED.set("part" if holds_resources(self._module) else None)
            TICKET.set(ticket)
            TRACE.set(calls)
            with configuration.context(**head["settings"]):
                return runtime.perform(heard_steps(self._module, unpack(said.body)))

        try:
            made = copy_context().run(run)
            record = dict(record_of("the part", made))
            _refuse_formless(record)
            body = pack(record)
            answer: dict[str, Any] = {"kind": "done", "made": len(body)}
            body += self._traced(calls)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # what the row has taken may not be given back otherwise
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises belongs to the row
            answer, body = self._failed(error, ticket), b""
        finally:
            self._asking.end()
        answer |= told.ticket_learned(ticket)
        if ticket.defaulted is not None:
            answer["defaulted"] = told.raised(ticket.defaulted)
        try:
            self._pipe.write(answer, body)
        except (TypeError, ValueError) as error:
            failed = self._failed(RowError(f"what it made cannot be sent: {error}"), ticket)
            self._pipe.write({**failed, "spoiled": [], "instead": []})

    def _enter(self, found: _Taken, head: Mapping[str, Any]) -> None:
        """Set what the row runs under, in the context that is its own."""
        named = dict(self._module.named_predictors())
        for name, lm in found.models.items():  # the scope of the row before may have given it another
            named[name].lm = lm
        SCOPE.set(found.scope)
        HINTS.set({id(named[name]): hint for name, hint in head["hints"].items()})

    def _traced(self, calls: list[Any] | None) -> bytes:
        if not calls:
            return b""
        names = {id(predictor): name for name, predictor in self._module.named_predictors()}
        return pack({"calls": [[names.get(id(part), ""), given, made] for part, given, made in calls]})

    def _failed(self, error: Exception, ticket: Ticket) -> dict[str, Any]:
        head: dict[str, Any] = {"kind": "raised", **told.raised(error)}
        numbers = [number for number, known in self._asking.failed.items() if known is error]
        if numbers:
            head["ask"] = numbers[0]
        head["on_error"] = noted(ticket, error, "on_error")
        asked = asked_by(error)
        head["predictor"] = next((n for n, part in self._module.named_predictors() if part is asked), None)
        head["of_part"] = isinstance(error, self._failures) or not self._healthy(head)
        return head

    def _healthy(self, failed: Mapping[str, Any]) -> bool:
        healthy = getattr(self._module, "healthy", None)
        if healthy is None:
            return True
        late = {**failed, "of_part": True, "spoiled": [], "instead": []}  # the parent ends this process then
        try:
            with when_late(
                seconds_to_close(self._module), lambda where: self._pipe.write({**late, "hangs": where})
            ):
                return bool(_finished(healthy))
        except Exception:  # noqa: BLE001 - asking over a dead connection fails as well
            return False


def _with(learned: PredictorParameters, demos: list[Any]) -> PredictorParameters:
    """With demos that may hold pictures and the like, which are no JSON."""
    object.__setattr__(learned, "demos", tuple(demos))
    return learned


def _refuse_formless(record: Mapping[str, Any]) -> None:
    """Refuse what would arrive as the text of an address, where the row itself would fail to be written."""
    for name, value in record.items():
        kind = formless(value) if not is_plain(value) else None
        if kind is not None:
            raise RowError(
                f"the field {name!r} cannot be sent from a worker process: a {kind.__name__} has no JSON "
                "form; return text or plain data"
            )


def _finished(fn: Callable[[], Any]) -> Any:
    made = fn()
    return runtime.run(_awaited(made)) if inspect.isawaitable(made) else made


async def _awaited(made: Any) -> Any:
    return await made
