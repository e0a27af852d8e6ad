"""Take a program apart: every part of it becomes a node, and so an operator, of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.ahead import described
from dspy_stream.modules.compose import Composite, Named, Pipeline, Program
from dspy_stream.modules.defaults import check_defaults, default_outputs
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.hosts import Place
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import PartOptions
from dspy_stream.modules.possible import made_by
from dspy_stream.modules.recorded import Recorded
from dspy_stream.modules.route import DEFAULT, Loop, Route
from dspy_stream.modules.supervision import holds_resources
from dspy_stream.modules.trace import Untraceable, is_leaf, trace
from dspy_stream.modules.traced import Traced, TracedCall
from dspy_stream.stream.nodes import Case, Finish, Join, Merge, Node, Through, legible
from dspy_stream.stream.typed import values_known

__all__ = ["add_step", "splits"]

_KINDS: Final[tuple[type[Composite], ...]] = (Pipeline, Program, Fork, Route)


def splits(module: Module) -> bool:
    """True for a program whose parts can be operators; a subclass with a way of its own runs whole."""
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if kind is None or module._has_aforward() or module._own_call:
        return False
    assert isinstance(module, kind)
    mine = type(module)
    return mine.forward is Composite.forward and mine.steps is kind.steps and mine.parts is kind.parts


def add_step(before: Node, step: Through, options: PartOptions, split: bool | None) -> Node:
    """The last node of a step after ``before``: of one operator, or of one for each part.

    ``step`` says how the parts are run that have no options of their own, ``options`` what differs
    for the module as a whole. With ``split`` None a program of parts is taken apart.
    """
    module = step.module
    if isinstance(module, Composite):
        made_by(Named(step.label, module, PartOptions()), values_known(before))
    mine = _governed_by(step, options)
    free = not options.governs and options.outputs is None
    if split is not False and free and splits(module):
        expansion = _Expansion(mine)
        last = expansion.program(before, module, mine, ())
        expansion.check(step)
        return last
    PartOptions(on_error=mine.on_error, defaults=mine.defaults, outputs=mine.outputs).check(
        step.label, module
    )
    mine = replace(mine, place=replace(mine.place, name=mine.label), ahead=split is not False)
    check_place(mine)
    notes = [_why_whole(mine)] if split is not False else []
    if split and free and not isinstance(module, Composite) and step.on_error == "default":
        notes.insert(0, "runs whole: its default outputs are those of the whole forward")
    elif split and free and not isinstance(module, Composite) and step.place.isolation != "inline":
        notes.insert(0, "runs whole: its isolation is that of the whole forward")
    elif split and free and not isinstance(module, Composite):
        try:
            traced = trace(module) if isinstance(module, Traced) or not is_leaf(module) else None
        except Untraceable as error:
            notes.insert(0, f"runs whole: {error}")
        else:
            if traced is not None and len(traced.calls) > 1:
                return _traced(before, traced, mine)
    note = "; ".join(filter(None, notes))
    return Node(replace(mine, name=step.name or options.name, note=note), before)


def _traced(before: Node, traced: Traced, step: Through) -> Node:
    """A node for each call of a traced ``forward``; calls that need each other come one after the other."""
    prefix = (step.name,) if step.name else ()
    node = before
    for level in traced.levels():
        ends = []
        step = replace(step, joined=len(level) > 1)
        for call in level:
            name = _sentence((*prefix, call.name))
            part = replace(step, module=TracedCall(traced, call), name=name, part=call.name)
            ends.append(Node(part, node))
        if len(ends) > 1:
            names = tuple(call.name for call in level)
            ends = [Node(Join(names, step.order == "ordered"), ends[0], (*ends[1:], node))]
        node = ends[0]
    return Node(Finish(traced, step.on_error), node)


class _Expansion:
    def __init__(self, step: Through) -> None:
        self._prefix = (step.name,) if step.name else ()
        self._defaulted: set[str] = set()  # outputs whose defaults the step has named

    def check(self, step: Through) -> None:
        """Refuse defaults of the step that no part has taken."""
        unknown = sorted(set(step.defaults or {}) - self._defaulted)
        if unknown:
            raise ConfigurationError(
                f"{step.label}: defaults name {unknown[0]!r}, which no part makes that fails by default"
            )

    def program(self, before: Node, module: Module, step: Through, path: tuple[str, ...]) -> Node:
        """The nodes of a program."""
        tree = module._tree if isinstance(module, Program) else None
        step = replace(step, place=replace(step.place, tree=tree))
        if isinstance(module, Fork):
            return self._fork(before, module, step, path)
        if isinstance(module, Route):
            return self._route(before, module, step, path)
        assert isinstance(module, Composite)
        node = before
        for part in module.parts():
            name = (part.name,) if isinstance(module, Program) else _stage_name(part)
            node = self.part(node, part, step, (*path, *name))
        return node

    def part(self, before: Node, part: Named, step: Through, path: tuple[str, ...]) -> Node:
        """The nodes of one part: one, unless it is a program itself."""
        module, options = part.module, part.options
        mine = _governed_by(step, options)
        if _apart(part):
            return self.program(before, module, mine, path)
        name = options.name or _sentence((*self._prefix, *path))
        if mine.on_error == "default" and options.on_error is None:
            mine = replace(mine, defaults=self._shared_defaults(name, module, mine))
        elif options.on_error is None:
            mine = replace(mine, defaults=None)
        place = replace(mine.place, name=part.name if mine.place.tree is not None else name)
        mine = replace(mine, place=place)
        node = replace(mine, module=module, name=name, part=".".join(path))
        node = replace(node, note=_why_whole(node))
        check_place(node)
        return Node(node, before)

    def _shared_defaults(self, name: str, module: Module, step: Through) -> dict[str, Any]:
        """Those of the step's defaults that are for one part, which says nothing of its own failures."""
        made = module.output_names()
        given = step.defaults or {}
        mine = {output: value for output, value in given.items() if made is not None and output in made}
        check_defaults(name, module, mine, step.outputs)
        self._defaulted |= set(mine)
        return mine

    def _defaults_of_all(self, module: Module, step: Through) -> dict[str, Any] | None:
        """What a row goes on with that fails between the parts; None where it does not, or nobody knows."""
        if step.on_error != "default":
            return None
        names = module.output_names()
        given = step.defaults or {}
        mine = {name: value for name, value in given.items() if names is None or name in names}
        if names is None and not mine:
            return None
        self._defaulted |= set(mine)
        return default_outputs(module, mine)

    def _fork(self, before: Node, fork: Fork, step: Through, path: tuple[str, ...]) -> Node:
        branch = replace(step, joined=True)
        ends = [self.part(before, part, branch, (*path, part.name)) for part in fork.parts()]
        names = tuple(part.name for part in fork.parts())
        failing = (step.on_error, self._defaults_of_all(fork, step))
        return Node(Join(names, step.order == "ordered", *failing), ends[0], (*ends[1:], before))

    def _route(self, before: Node, route: Route, step: Through, path: tuple[str, ...]) -> Node:
        ordered, parts = step.order == "ordered", route.parts()
        shared = (ordered, object(), step.on_error, self._defaults_of_all(route, step))
        step = replace(step, joined=step.joined or ordered)
        ends = []
        for index, part in enumerate(parts):
            name = part.name if part.name == DEFAULT else part.name.strip("'\"")
            case = Node(Case(route, index, name, *shared), before)
            ends.append(self.part(case, part, step, (*path, legible(name))))
        if ordered:
            all_rows = Node(Case(route, None, "all", *shared), before)
            names = tuple(part.name for part in parts)
            return Node(Join(names, ordered=True), ends[0], (*ends[1:], all_rows))
        past = Node(Case(route, -1, "past", *shared), before)
        return Node(Merge(), ends[0], (*ends[1:], past))


def _governed_by(step: Through, options: PartOptions) -> Through:
    """How a part is run: as its own options say, else as the whole program's step does."""
    given: dict[str, Any] = {
        name: value
        for name in ("capacity", "order", "timeout", "retries", "on_error", "fallback", "outputs")
        if (value := getattr(options, name)) is not None
    }
    if options.on_error is not None:
        given |= {"defaults": options.defaults, "covered": options.on_error == "default"}
    place = step.place
    if options.isolation is not None:
        place = replace(place, isolation=options.isolation, workers=None)
    if options.workers is not None:
        place = replace(place, workers=options.workers)
    return replace(step, **given, place=replace(place, factory=options.factory or place.factory))


def check_place(step: Through) -> None:
    """Refuse a step whose code cannot run where it is to.

    Raises:
        ConfigurationError: its module cannot, or its calls wait for batches.
    """
    step.place.check(step.module)
    if step.lane is not None and step.place.isolation != "inline":
        raise ConfigurationError(
            f"{step.label}: rows wait for a batch for hours, and each would hold a {step.place.isolation}: "
            "give the step isolation='inline', or no lane"
        )


def _stage_name(part: Named) -> tuple[str, ...]:
    """Nothing for a fork or a route that has no name: its parts have theirs."""
    if part.options.name is None and _apart(part):
        return ()
    return (part.options.name or str(getattr(part.module, "label", type(part.module).__name__)),)


def _apart(part: Named) -> bool:
    """True where the parts of a part become steps; what holds for all of them together keeps them one."""
    return splits(part.module) and not part.options.governs and part.options.outputs is None


def _sentence(path: Iterable[str]) -> str:
    return "_".join(path)


def _why_whole(step: Through) -> str:
    """What is to be said about how a step's parts run in it."""
    module = step.module
    if isinstance(module, Loop):
        return f"a loop runs whole, up to {module.max_iterations} rounds a row"
    if isinstance(module, Composite):
        if splits(module):
            return "runs whole: its timeout, retries, fallback or outputs are those of all its parts together"
        return "runs whole: a way of its own joins its parts"
    return _asked(module, step.place)


def _asked(module: Module, place: Place) -> str:
    """Whether its predictors are asked at the same time."""
    if isinstance(module, Recorded):
        return described(module.module, "a trace is kept of each row")
    if place.isolation != "inline":
        return described(module, f"its isolation is {place.isolation!r}")
    return described(module, "it has open and close" if holds_resources(module) else "")
