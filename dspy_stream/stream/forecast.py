"""The dry run: real prompts of a sample of rows, made-up answers, and what the whole would cost.

Every sampled row goes through the steps as it would in a run, in this process, but its calls end
here: an answer that the journal holds is read from it, and any other is made up from the types of
the signature. Nothing is sent, and neither an output nor any state is written. The flow's own functions and
modules do run for the sampled rows, with whatever they do by themselves. Where made-up answers do not content
one for any row, the rows go on as they came to it, with what its predictors declare as outputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from dspy_stream import runtime
from dspy_stream.engine import Answer, Plan, Ticket
from dspy_stream.errors import AdapterParseError, ConfigurationError, FlowError, SignatureError, StateError
from dspy_stream.lm.budget import Budget
from dspy_stream.lm.tokens import BYTES_PER_TOKEN, answer_limit, request_bytes
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.hosts import HOSTS, Hosts
from dspy_stream.modules.scope import SCOPE, TICKET, Clients, Scope, default_adapter
from dspy_stream.modules.supervision import holds_resources
from dspy_stream.program.plausible import example_outputs
from dspy_stream.program.watch import WATCHER
from dspy_stream.rows import Row
from dspy_stream.runtime import Ask
from dspy_stream.state.journal import Journal
from dspy_stream.state.runs import Runs
from dspy_stream.state.spend import Account, Part
from dspy_stream.state.store import Store
from dspy_stream.stream import nodes
from dspy_stream.stream.checks import check_input
from dspy_stream.stream.compile import step_ids
from dspy_stream.stream.estimate import Estimate, StepEstimate
from dspy_stream.stream.flow import default_state
from dspy_stream.stream.functions import function_of
from dspy_stream.stream.observed import Observed, Questions
from dspy_stream.stream.run import model_of, priced
from dspy_stream.stream.sampling import Sample, sample
from dspy_stream.stream.sources.head import Head
from dspy_stream.stream.work import Dropped
from dspy_stream.types import Choice, Message, Request, Response, Usage

if TYPE_CHECKING:
    from dspy_stream.lm.base import Model
    from dspy_stream.modules.module import Module
    from dspy_stream.stream.flow import Spec
    from dspy_stream.stream.run import RunOptions

__all__ = ["dry_run"]

# Calls of one row in one step after which it is not followed further: made-up answers may never
# satisfy a program that asks until it is content.
_MOST_CALLS: Final = 64

Weighed = tuple[Row, float]
"""A row, and how many rows of the whole it stands for."""


def dry_run(spec: Spec, options: RunOptions, rows: int) -> Estimate:
    """Estimate what a flow takes from a sample of its rows; see :meth:`Flow.dry_run`.

    Raises:
        FlowError: the input is live, so that looking would take rows away.
        LMNotConfiguredError: a predictor has no model.
    """
    if runtime.on_loop():
        raise FlowError("a flow cannot be looked at inside a module that is itself running in a flow")
    if rows < 1:
        raise FlowError(f"sample={rows}: a dry run looks at one row at least")
    if options.limit is not None:
        spec = spec.with_source(Head(spec.source(), options.limit))
    check_input(spec)
    found = sample(spec.source(), rows)
    if not found.rows:
        return Estimate(spec.name, found.total, found.counted, 0, notes=("the input holds no rows",))
    adapter = options.adapter or spec.defaults.get("adapter")
    models: dict[str, Model] = {}

    def nobody(model: Model) -> _Nobody:
        models[model.model] = model
        return _Nobody(model.model)

    with priced(options.prices), _kept(_folder(spec, options), spec.name) as kept, Budget(max_calls=0):
        scope = Scope(Clients(None, lane=nobody), lm=model_of(spec, options.lm), adapter=adapter)
        walk = _Walk(spec, found, kept, scope=scope, models=models)
        try:
            runtime.run(walk.go())
        finally:
            runtime.run(walk.hosts.aclose())
        steps = tuple(walk.steps())
    return Estimate(
        spec.name, found.total, found.counted, len(found.rows), steps, (*found.notes, *walk.notes)
    )


def _folder(spec: Spec, options: RunOptions) -> Path | None:
    if options.state is None:
        return None
    return Path(options.state) if isinstance(options.state, (str, Path)) else default_state(spec.name)


@dataclass(frozen=True)
class _Kept:
    """What earlier runs left: finished calls, and what the newest run used by step and model."""

    journal: Journal | None = None
    account: Account = field(default_factory=Account)


@contextmanager
def _kept(state: Path | None, flow: str) -> Iterator[_Kept]:
    if state is None:
        yield _Kept()
        return
    try:
        store = Store.open(state, read_only=True)
    except StateError:
        if state.exists() and any(state.iterdir()):
            raise
        yield _Kept()
        return
    with store:
        journal = Journal(store)
        newest = Runs(store).newest(flow)
        yield _Kept(journal, journal.account(newest.run_id) if newest is not None else Account())


class _Unforeseen(Exception):
    """What a row's program does cannot be followed in a dry run."""


class _Nobody:
    """A model that is not there: in a dry run nothing is sent."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def __call__(self, request: Request) -> Response:  # noqa: ARG002
        raise _Unforeseen(f"a call to {self._model} that no predictor makes; it is not made")

    async def aclose(self) -> None:
        """Nothing to close."""


class _Walk:
    """The sampled rows on their way through the flow."""

    def __init__(
        self, spec: Spec, found: Sample, kept: _Kept, *, scope: Scope, models: Mapping[str, Model]
    ) -> None:
        self.notes: list[str] = []
        self._spec = spec
        self._sample = found
        self._kept = kept
        self._scope = scope
        self._models = models
        self._ids = step_ids([end for end, _ in spec.ends])
        self._done: dict[int, list[Weighed]] = {}
        self._seen: dict[Part, Observed] = {}
        self._examples: dict[int, tuple[Plan, dict[str, Any], float]] = {}
        self._questions = Questions()
        self._weight = 1.0
        self._batch = False
        self._invented = False  # an answer has been made up
        self.hosts = Hosts()

    async def go(self) -> None:
        """Take every row to every end."""
        for end, _ in self._spec.ends:
            for node in end.chain():
                if id(node) not in self._done:
                    self._done[id(node)] = await self._through(node)

    async def _through(self, node: nodes.Node) -> list[Weighed]:
        operation = node.operation
        if isinstance(operation, nodes.Read):
            return [(row, self._sample.weight) for row in self._sample.rows]
        assert node.parent is not None
        before, step = self._done[id(node.parent)], self._ids[id(node)]
        if isinstance(operation, nodes.Through):
            return await self._module(step, operation, before)
        if isinstance(operation, nodes.Batch):
            return _gathered(before, operation.size)
        if isinstance(operation, nodes.Merge):
            return [item for parent in node.parents for item in self._done[id(parent)]]
        if isinstance(operation, nodes.Join):
            return _joined([self._done[id(parent)] for parent in node.parents])
        if isinstance(operation, nodes.Case):
            return self._applied(step, before, lambda row: [row] if _goes(operation, row) else [], parts=True)
        if isinstance(operation, nodes.Branch):
            side = operation.side
            goes = lambda row: [row] if bool(operation.fn(row)) is side else []  # noqa: E731
            return self._applied(step, before, goes, parts=True)
        return self._applied(step, before, function_of(operation))

    def _applied(self, step: str, before: list[Weighed], apply: Any, *, parts: bool = False) -> list[Weighed]:
        """The rows after a function; where it ``parts`` them, none of those that it fails for goes on."""
        after: list[Weighed] = []
        passed = 0
        problem: Exception | None = None
        for row, weight in before:
            try:
                made = apply(row)
            except Exception as error:  # noqa: BLE001  the user's function, of made-up values perhaps
                problem = error
                continue
            passed += 1
            after += [(item, weight) for item in made if type(item) is not Dropped]
        going_on = [] if parts else before
        return self._made_up_for(step, (after, passed), (going_on, len(before)), problem)

    async def _module(self, step: str, operation: nodes.Through, before: list[Weighed]) -> list[Weighed]:
        after: list[Weighed] = []
        problem: Exception | None = None
        names = operation.module.input_names()
        self._batch = operation.lane is not None
        for row, self._weight in before:
            inputs = row.fields if names is None else {n: row.fields[n] for n in names if n in row.fields}
            try:
                value = await asyncio.ensure_future(self._row(Ticket("", step, row.id), operation, inputs))
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001  the user's program, of made-up values perhaps
                problem = error
                continue
            outputs = getattr(value, "_store", value)
            if isinstance(outputs, Mapping):
                row = row.with_fields(**_named(outputs, operation.outputs))
            after.append((row, self._weight))
        going_on: list[Weighed] = []
        if problem is not None and not after:
            outputs = _named(_declared(operation.module), operation.outputs)
            going_on = [(row.with_fields(**outputs), weight) for row, weight in before]
        return self._made_up_for(step, (after, len(after)), (going_on, len(before)), problem)

    async def _row(self, ticket: Ticket, operation: nodes.Through, inputs: Mapping[str, Any]) -> Any:
        """One row's steps, in a task of its own, whose context is its own too."""
        SCOPE.set(self._scope)
        TICKET.set(ticket)
        WATCHER.set(self)
        HOSTS.set(self.hosts)
        if operation.place.isolation == "process":
            raise _Unforeseen("its code runs in worker processes, which a dry run does not start")
        if not holds_resources(operation.module):
            return await runtime.aperform(heard_steps(operation.module, inputs))
        place = replace(operation.place, isolation="inline", workers=None)
        return await runtime.aperform(self.hosts.steps(operation.module, place, inputs))

    def _made_up_for(
        self,
        step: str,
        followed: tuple[list[Weighed], int],
        before: tuple[list[Weighed], int],
        problem: Exception | None,
    ) -> list[Weighed]:
        """Rows that could be followed stand for the others; where there are none, those before go on."""
        (after, passed), (going_on, total) = followed, before
        if problem is None:
            return after
        why = "; the answers that it was given are made up" if self._invented else ""
        how = ""
        if not passed:
            how = ": later steps are estimated as if it had passed them on" if going_on else ""
        self.notes.append(
            f"{step}: {total - passed} of {total} sampled rows could not be followed further "
            f"({type(problem).__name__.lstrip('_')}: {' '.join(str(problem).split())[:160]}){why}{how}"
        )
        return [(row, weight * total / passed) for row, weight in after] if passed else going_on

    # --------------------------------------------------------------------------- calls of predictors

    def started(self, kind: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        """Nothing is said of calls that are not made."""

    def ended(self, kind: str, instance: Any, outputs: Any) -> None:
        """Nothing either."""

    def attend(
        self, predictor: Any, plan: Plan, steps: Generator[Any, Any, Answer]
    ) -> Generator[Any, Any, Answer]:
        """Answer the calls of a predictor from the journal, or else with made-up outputs."""
        ticket = TICKET.get()
        assert ticket is not None
        effect = next(steps)
        while True:
            if type(effect) is not Ask:
                effect = steps.send((yield effect))
                continue
            ticket.calls += 1
            if ticket.calls > _MOST_CALLS:
                raise _Unforeseen(
                    f"more than {_MOST_CALLS} calls for one row: made-up answers never content it"
                )
            stored = self._stored(effect.request)
            outputs, tokens = self._example(predictor, plan)
            self._count(ticket, plan.head.model, effect.request, stored, tokens)
            if stored is None:
                self._invented = True
                break
            try:
                effect = steps.send(stored)
            except StopIteration as stop:
                answer: Answer = stop.value
                return answer
            except AdapterParseError:
                break
        steps.close()
        if plan.then is not None:
            second = Request(plan.then.head, (Message("user", "x" * int(tokens * BYTES_PER_TOKEN)),))
            self._count(ticket, plan.then.head.model, second, None, tokens)
        several = plan.head.options.get("n", 1)
        return Answer((outputs,) * several, Response((Choice(""),) * several, Usage(), plan.head.model))

    def _stored(self, request: Request) -> Response | None:
        key, journal = request.journal_key(), self._kept.journal
        data = journal.get(key) if journal is not None and key is not None else None
        return Response.from_bytes(data) if data is not None else None

    def _example(self, predictor: Any, plan: Plan) -> tuple[dict[str, Any], float]:
        """Outputs of a predictor, and how many tokens an answer with them has."""
        found = self._examples.get(id(plan))
        if found is None:
            signature = predictor.signature
            outputs = example_outputs(signature)
            try:
                text = default_adapter(self._scope).format_assistant_message_content(signature, outputs)
            except Exception:  # noqa: BLE001  an adapter of the user's; its answers are judged as JSON
                text = orjson.dumps(outputs, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
            tokens = len(text.encode()) / BYTES_PER_TOKEN * plan.head.options.get("n", 1)
            # The plan is kept as well, so that its id stays its own.
            found = self._examples[id(plan)] = (plan, outputs, tokens)
        return dict(found[1]), found[2]

    def _count(
        self, ticket: Ticket, model: str, request: Request, stored: Response | None, tokens: float
    ) -> None:
        part: Part = (ticket.step, model)
        seen = self._seen.get(part)
        if seen is None:
            seen = self._seen[part] = Observed(self._models.get(part[1]), self._batch)
        again = self._questions.again(request.journal_key(), ticket.row_id, made_up=stored is None)
        size, limit = request_bytes(request), answer_limit(request.options)
        if stored is not None:
            seen.found(self._weight, size, stored.usage)
        elif again:
            seen.found(self._weight, size, None)  # an earlier row asks the same, and pays for it
        else:
            seen.asked(self._weight, size, tokens, limit)

    def steps(self) -> Iterator[StepEstimate]:
        """What was seen, for the whole, in the order of the steps."""
        for part, seen in sorted(self._seen.items(), key=lambda item: item[0][0]):
            yield seen.estimate(part, self._kept.account.parts.get(part), self._sample.whole)
            if seen.thinks and seen.pays:
                self.notes.append(
                    f"{part[0]}: {part[1]} thinks before it answers; what it thinks is charged as part of "
                    "the answer, and how much that is shows only in a run, such as one with --limit"
                )


def _declared(module: Module) -> dict[str, Any]:
    """Made-up values of what a module's predictors declare, as far as it passes that on."""
    names = module.output_names()
    made: dict[str, Any] = {}
    for predictor in module.predictors():
        with suppress(SignatureError):  # no example can be made, which is why the module has failed
            made.update(example_outputs(predictor.signature))
    return made if names is None else {name: made[name] for name in names if name in made}


def _named(outputs: Mapping[str, Any], names: Mapping[str, str] | None) -> Mapping[str, Any]:
    if names is None:
        return outputs
    return {new: outputs[name] for name, new in names.items() if name in outputs}


def _goes(case: nodes.Case, row: Row) -> bool:
    """Whether a row goes this way; what is no row does not occur here."""
    return case.index is None or case.index == case.route.place(row.fields)


def _joined(parents: list[list[Weighed]]) -> list[Weighed]:
    """The rows before a fork, the last of the parents, each with what its parts have added."""
    *parts, before = ({row.id: (row, weight) for row, weight in parent} for parent in parents)
    after: list[Weighed] = []
    for row_id, (row, _) in before.items():
        found = [part[row_id] for part in parts if row_id in part]
        if found:
            fields = {name: value for made, _ in found for name, value in made.fields.items()}
            after.append((row.with_fields(**fields), max(weight for _, weight in found)))
    return after


def _gathered(before: list[Weighed], size: int) -> list[Weighed]:
    """Rows of lists: as many as there are groups of ``size`` in the whole."""
    after: list[Weighed] = []
    for start in range(0, len(before), size):
        group = before[start : start + size]
        weight = sum(weight for _, weight in group) / size
        rows = [row for row, _ in group]
        full = [rows[place % len(rows)] for place in range(size)]
        names = dict.fromkeys(name for row in full for name in row.fields)
        fields = {name: [row.fields.get(name) for row in full] for name in names}
        after.append((Row(rows[0].id, fields, rows[0].origin), weight))
    return after
