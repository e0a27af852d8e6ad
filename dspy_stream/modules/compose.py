"""Programs of several parts: one after the other over a growing record.

Each part reads its inputs from the record by name and adds its outputs to it. In a script such a
program is a module like any other. In a flow, :meth:`Stream.through` gives every part an operator
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import Part, PartOptions, as_part
from dspy_stream.modules.possible import Values, made_in_order
from dspy_stream.modules.running import refuse_lacking, run_part
from dspy_stream.modules.supervision import Tree
from dspy_stream.modules.supervisor import STRATEGIES, Intensity, Strategy
from dspy_stream.program import Prediction
from dspy_stream.runtime import Steps, aperform, perform

__all__ = ["Composite", "Named", "Pipeline", "Program", "Strategy"]


class Named(NamedTuple):
    """One part under its name, for running it."""

    name: str
    module: Module
    options: PartOptions

    def outputs(self) -> tuple[str, ...] | None:
        """Names of the fields that it adds to the record; None where only a call would tell."""
        names = self.options.outputs
        if names is not None:
            return tuple(names.values())
        made = self.module.output_names()
        fallback = self.options.fallback
        if made is None or fallback is None:
            return made
        others = fallback.output_names()
        return None if others is None else tuple(dict.fromkeys((*made, *others)))

    def required(self) -> tuple[str, ...]:
        """Names of the fields that a record must hold; none where ``on_error`` decides about one without."""
        return self.module.required_names() if self.options.on_error is None else ()


class Composite(Module):
    """The base of modules whose parts a flow can take apart."""

    def __init__(self) -> None:
        # The fallbacks of parts, by the part's name: they have parameters as well.
        self.fallbacks: dict[str, Module] = {}
        self._options: dict[str, PartOptions] = {}

    def parts(self) -> list[Named]:
        """The parts under their names, in order."""
        raise NotImplementedError

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Run the parts; the prediction holds the outputs of all of them."""
        self._refuse_positional(args)
        return perform(self.steps(inputs))

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._refuse_positional(args)
        return await aperform(self.steps(kwargs))

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The program for one record, as steps."""
        raise NotImplementedError

    def input_names(self) -> tuple[str, ...] | None:
        """None: a part may read any field of the record."""
        return None

    def composition(self) -> Any:
        """What decides the answers besides the parts; part of the program's digest."""
        return [type(self).__name__, [[part.name, _decisive(part.options)] for part in self.parts()]]

    def _made_values(self, known: Values) -> Values | None:  # noqa: ARG002
        """The possible values of what it makes of a record, for the routes that come after."""
        names = self.output_names()
        return None if names is None else dict.fromkeys(names)

    def _refuse_positional(self, args: tuple[Any, ...]) -> None:
        if args:
            raise ValueError(f"{type(self).__name__} takes its fields by name, not by position")

    def _keep(self, name: str, part: Part) -> Module:
        """Note a part's options and its fallback; the module itself is kept by the caller."""
        part.options.check(name, part.module)
        if part.options.fallback is not None:
            self.fallbacks[name] = part.options.fallback
        self._options[name] = part.options
        return part.module

    def _named(self, name: str, module: Module) -> Named:
        options = self._options[name]
        fallback = self.fallbacks.get(name)
        if fallback is not options.fallback:  # a copy of this program has fallbacks of its own
            options = self._options[name] = PartOptions(**{**options.__dict__, "fallback": fallback})
        return Named(name, module, options)

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.name}={part.module!r}" for part in self.parts())
        return f"{type(self).__name__}({parts})"


def _decisive(options: PartOptions) -> Any:
    made: list[Any] = [options.retries, dict(options.outputs or {}), options.on_error]
    return made if options.defaults is None else [*made, repr(sorted(options.defaults.items()))]


def _in_order(
    parts: Sequence[Named], inputs: Mapping[str, Any], tree: Tree | None = None
) -> Steps[Prediction]:
    record = dict(inputs)
    made: dict[str, Any] = {}
    _refuse_lacking(parts, record)
    for name, module, options in parts:
        outputs = yield from run_part(name, module, options, record, tree)
        record.update(outputs)
        made.update(outputs)
    return Prediction.of(made)


def _refuse_lacking(parts: Sequence[Named], record: Mapping[str, Any]) -> None:
    """Refuse a record that lacks what a later part needs and none before it makes, before any call is paid.

    Raises:
        RecordError: it does.
    """
    known = dict.fromkeys(record)
    for part in parts:
        if part.options.on_error is None:
            refuse_lacking(part.name, part.module, known)
        outputs = part.outputs()
        if outputs is None:  # it may make what a later part needs
            return
        known.update(dict.fromkeys(outputs))


def _required(parts: Sequence[Named]) -> tuple[str, ...]:
    """What the first record must hold, as far as the parts' own descriptions tell."""
    needed: dict[str, None] = {}
    made: set[str] = set()
    for part in parts:
        needed.update((name, None) for name in part.required() if name not in made)
        outputs = part.outputs()
        if outputs is None:  # it may make what a later part needs
            break
        made.update(outputs)
    return tuple(needed)


def _outputs(parts: Sequence[Named]) -> tuple[str, ...] | None:
    names: dict[str, None] = {}
    for part in parts:
        outputs = part.outputs()
        if outputs is None:
            return None
        names.update(dict.fromkeys(outputs))
    return tuple(names)


class Pipeline(Composite):
    """Parts one after the other, as ``first | second | third`` makes it.

    The prediction holds what all parts have made; a later output replaces an earlier one of the
    same name.

    Args:
        *parts: modules, modules with options, or functions of fields by name.

    >>> shout = lambda text: {"loud": text.upper()}
    >>> (Pipeline(shout) | (lambda loud: {"length": len(loud)}))(text="hello")
    Prediction(
        loud='HELLO',
        length=5
    )
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        if not parts:
            raise ConfigurationError("a pipeline has at least one part")
        self.stages: list[Module] = []
        self._labels: list[str] = []  # what a reader of an error calls the parts
        for value in parts:
            if type(value) is Pipeline:  # `a | (b | c)` is `(a | b) | c`
                for inner in value.parts():
                    self._append(Part(inner.module, inner.options))
            else:
                self._append(as_part(value))
        self._made_values({})

    def _made_values(self, known: Values) -> Values | None:
        return made_in_order(self.parts(), known)

    def _append(self, part: Part) -> None:
        number = len(self.stages)
        kind = part.options.name or getattr(part.module, "label", type(part.module).__name__)
        self.stages.append(self._keep(str(number), part))
        self._labels.append(f"part {number} ({kind})")

    def parts(self) -> list[Named]:
        """The parts, named by their numbers."""
        return [self._named(str(number), module) for number, module in enumerate(self.stages)]

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One part after the other."""
        labelled = zip(self._labels, self.parts(), strict=True)
        return _in_order([Named(label, module, options) for label, (_, module, options) in labelled], inputs)

    def required_names(self) -> tuple[str, ...]:
        """What the parts need and no part before them makes."""
        return _required(self.parts())

    def output_names(self) -> tuple[str, ...] | None:
        """What all parts make."""
        return _outputs(self.parts())


class Program(Composite):
    """Named parts that run in the order given: ``Program(retriever=..., answer=...)``.

    A part is an attribute of the program, and its parameters are named after it.

    Args:
        strategy: which parts are started again when one that holds a resource has failed (see
            :class:`~dspy_stream.modules.supervision.Supervised`): that one, that one and those after it,
            or all. Only parts that hold something are: the others have nothing to be started.
        intensity: how many restarts, of all parts together, are borne before the flow is stopped.
        options: for each part a mapping of options, as ``module.using(...)`` takes them.
        **parts: modules, modules with options, or functions of fields by name.

    Raises:
        ConfigurationError: there is no part, no such strategy, or a name that is taken.

    >>> program = Program(shout=lambda text: {"loud": text.upper()}, measure=lambda loud: {"n": len(loud)})
    >>> program(text="hello").n, [part.name for part in program.parts()]
    (5, ['shout', 'measure'])
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "one_for_one",
        intensity: Intensity | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ConfigurationError(f"strategy={strategy!r}: there are {', '.join(STRATEGIES)}")
        if intensity is not None and not isinstance(intensity, Intensity):
            raise ConfigurationError(
                f"intensity={intensity!r} is no Intensity(restarts=..., seconds=...); name a part otherwise"
            )
        if not parts:
            raise ConfigurationError("a program has at least one part: Program(answer=Predict(...))")
        if unknown := sorted(set(options or {}) - set(parts)):
            raise ConfigurationError(f"options for {unknown[0]!r}, which is no part; {', '.join(parts)} are")
        self.strategy = strategy
        self._names = tuple(parts)
        self._tree = Tree(self._names, strategy, intensity if intensity is not None else Intensity())
        keep_named(self, {name: _with(value, (options or {}).get(name)) for name, value in parts.items()})
        self._made_values({})

    def _made_values(self, known: Values) -> Values | None:
        return made_in_order(self.parts(), known)

    def parts(self) -> list[Named]:
        """The parts by their names."""
        return [self._named(name, getattr(self, name)) for name in self._names]

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One part after the other."""
        return _in_order(self.parts(), inputs, self._tree)

    def required_names(self) -> tuple[str, ...]:
        """What the parts need and no part before them makes."""
        return _required(self.parts())

    def output_names(self) -> tuple[str, ...] | None:
        """What all parts make."""
        return _outputs(self.parts())


def _with(value: Any, options: Mapping[str, Any] | None) -> Part:
    part = as_part(value)
    return part.using(**options) if options else part


def keep_named(program: Composite, parts: Mapping[str, Part]) -> None:
    """Make parts attributes of a program.

    Raises:
        ConfigurationError: a name means something else already.
    """
    for name, part in parts.items():
        if hasattr(type(program), name) or name in program.__dict__ or name.startswith("_"):
            raise ConfigurationError(f"a part cannot be named {name!r}: a module has something of that name")
        setattr(program, name, program._keep(name, part))
