"""A program as JSON: which of the package's parts it is made of, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Final, NamedTuple

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.compose import Composite, Pipeline, Program
from dspy_stream.modules.ensemble import EnsembledProgram
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.format import Format
from dspy_stream.modules.majority import majority
from dspy_stream.modules.module import Module
from dspy_stream.modules.multi_chain_comparison import MultiChainComparison
from dspy_stream.modules.part import Part, PartOptions
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.program_of_thought import ProgramOfThought
from dspy_stream.modules.recorded import Recorded
from dspy_stream.modules.retrieve import Retrieve
from dspy_stream.modules.rlm import RLM
from dspy_stream.modules.route import Loop, Route, told
from dspy_stream.modules.supervisor import Intensity
from dspy_stream.program.document import closed
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.saved_signature import build_signature, whole_signature

__all__ = ["construct", "describe"]

_DEEPEST: Final = 16
_OPTIONS: Final = tuple(item.name for item in fields(PartOptions) if item.name not in ("fallback", "factory"))


class _Kind(NamedTuple):
    """How one kind of part is written down, and made from what was written."""

    type: type[Module]
    keys: tuple[str, ...]
    write: Callable[[Any], dict[str, Any]]
    make: Callable[[Mapping[str, Any], int], Module]
    optional: tuple[str, ...] = ()


def describe(module: Module) -> dict[str, Any]:
    """The blueprint of a module; what was learned is left to its predictors' own entries.

    Raises:
        ConfigurationError: a part is a class of the user's own, or holds a function.

    >>> describe(Format("Dear {name}"))
    {'part': 'Format', 'template': 'Dear {name}', 'output': 'text'}
    """
    for name, kind in _KINDS.items():
        if type(module) is kind.type:
            return {"part": name, **kind.write(module)}
    raise ConfigurationError(
        f"{type(module).__name__} is not one of the parts that a whole program is saved from "
        f"({', '.join(_KINDS)}); save its state, and make the program in code"
    )


def construct(blueprint: Any, depth: int = 0) -> Module:
    """The module that a blueprint describes. Names of parts are looked up in a closed table.

    Raises:
        ConfigurationError: there is no such part, or it cannot be made so.

    >>> construct({"part": "Format", "template": "Dear {name}", "output": "text"})(name="Ann").text
    'Dear Ann'
    """
    if depth > _DEEPEST:
        raise ConfigurationError(f"the program nests deeper than {_DEEPEST} parts")
    name = blueprint.get("part") if isinstance(blueprint, Mapping) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigurationError(f"there is no part {str(name)[:60]!r}; there are {', '.join(_KINDS)}")
    closed(blueprint, ("part", *kind.keys), f"part {name}", optional=kind.optional)
    return kind.make(blueprint, depth + 1)


# ---------------------------------------------------------------------------------- predictors


def _write_predict(module: Predict) -> dict[str, Any]:
    return {"signature": whole_signature(module.signature, "a predictor")}


def _make_predict(given: Mapping[str, Any], _depth: int) -> Predict:
    return Predict(build_signature(given["signature"], "a predictor"))


def _make_chain_of_thought(given: Mapping[str, Any], depth: int) -> ChainOfThought:
    made = ChainOfThought("question -> answer")
    made.predict = _make_predict(given, depth)
    return made


def _write_comparison(module: MultiChainComparison) -> dict[str, Any]:
    asked = module.predict.signature.delete("rationale")
    for number in range(1, module.M + 1):
        asked = asked.delete(f"reasoning_attempt_{number}")
    return {"signature": whole_signature(asked, "a comparison"), "M": module.M}


def _make_comparison(given: Mapping[str, Any], _depth: int) -> MultiChainComparison:
    attempts = given["M"]
    if type(attempts) is not int or not 0 < attempts <= _MOST_ATTEMPTS:
        raise ConfigurationError(f"a comparison is of M attempts, 1 to {_MOST_ATTEMPTS}")
    return MultiChainComparison(build_signature(given["signature"], "a comparison"), M=attempts)


_MOST_ATTEMPTS: Final = 1000


# ------------------------------------------------------------------- ensembles, and code by a model


def _write_ensemble(module: EnsembledProgram) -> dict[str, Any]:
    if module.reduce_fn not in (None, majority):
        raise ConfigurationError(
            "an ensemble is saved whole where its reduce_fn is dspy_stream.majority, or none: another "
            "function is code; save() the state without the program"
        )
    return {
        "programs": [describe(program) for program in module.programs],
        "reduce": None if module.reduce_fn is None else "majority",
        "size": module.size,
        "deterministic": module.deterministic,
    }


def _make_ensemble(given: Mapping[str, Any], depth: int) -> EnsembledProgram:
    programs, size = given["programs"], given["size"]
    if not isinstance(programs, list) or not programs:
        raise ConfigurationError("`programs` is a list of parts")
    if size is not None and (type(size) is not int or not 0 < size <= len(programs)):
        raise ConfigurationError("`size` is null, or how many of the programs are asked")
    if given["reduce"] not in (None, "majority") or type(given["deterministic"]) is not bool:
        raise ConfigurationError("`reduce` is null or majority, and `deterministic` true or false")
    return EnsembledProgram(
        [construct(program, depth) for program in programs],
        reduce_fn=None if given["reduce"] is None else majority,
        size=size,
        deterministic=given["deterministic"],
    )


_RLM_LIMITS: Final = ("max_iters", "max_llm_calls", "max_output_chars")


def _write_coding(module: RLM | ProgramOfThought, limits: tuple[str, ...]) -> dict[str, Any]:
    held = {"_interpreter_factory": "an interpreter", "_interpreter": "an interpreter"}
    for name, what in {**held, "_tools": "tools", "sub_lm": "a model"}.items():
        if getattr(module, name, None):
            raise ConfigurationError(
                f"{type(module).__name__} has {what} of its own, which a saved program cannot bring along; "
                "save() the state without the program"
            )
    signature = whole_signature(module.signature, type(module).__name__)
    return {"signature": signature, **{name: getattr(module, name) for name in limits}}


def _coding(given: Mapping[str, Any], limits: tuple[str, ...]) -> dict[str, Any]:
    for name in limits:
        if type(given[name]) is not int or given[name] < 0:
            raise ConfigurationError(f"`{name}` is a whole number, 0 or more")
    signature = build_signature(given["signature"], "a signature")
    return {"signature": signature, **{name: given[name] for name in limits}}


# ----------------------------------------------------------------------------------- composites


def _write_part(program: Composite, name: str) -> dict[str, Any]:
    part = next(part for part in program.parts() if part.name == name)
    made: dict[str, Any] = {"module": describe(part.module)}
    if part.options.isolation == "process":
        raise ConfigurationError(
            f"part {name!r} runs in processes, which make it from your code; a saved program is no code: "
            "save() the state without the program"
        )
    options = {
        option: to_jsonable(getattr(part.options, option))
        for option in _OPTIONS
        if getattr(part.options, option) is not None
    }
    if options:
        made["options"] = options
    if part.options.fallback is not None:
        made["fallback"] = describe(part.options.fallback)
    return made


def _make_part(given: Any, depth: int) -> Part:
    given = closed(given, ("module",), "a part", optional=("options", "fallback"))
    options = closed(given.get("options", {}), (), "the options of a part", optional=_OPTIONS)
    if options.get("isolation") == "process":
        raise ConfigurationError("a saved program has no part that runs in processes: they make it from code")
    if "fallback" in given:
        options = {**options, "fallback": construct(given["fallback"], depth)}
    return Part(construct(given["module"], depth), PartOptions.of(options))


def _write_parts(program: Composite) -> dict[str, Any]:
    return {"parts": {part.name: _write_part(program, part.name) for part in program.parts()}}


def _make_parts(given: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if not isinstance(given["parts"], dict) or not all(name.isidentifier() for name in given["parts"]):
        raise ConfigurationError("`parts` is an object of parts by name")
    return {name: _make_part(part, depth) for name, part in given["parts"].items()}


def _write_program(program: Program) -> dict[str, Any]:
    made = {**_write_parts(program), "strategy": program.strategy}
    intensity = program._tree.intensity
    if intensity != Intensity():
        made["intensity"] = {"restarts": intensity.restarts, "seconds": intensity.seconds}
    return made


def _make_program(given: Mapping[str, Any], depth: int) -> Program:
    intensity = None
    if "intensity" in given:
        intensity = Intensity(**closed(given["intensity"], ("restarts", "seconds"), "the intensity"))
    return Program(strategy=given["strategy"], intensity=intensity, **_make_parts(given, depth))


def _write_stages(program: Composite) -> dict[str, Any]:
    return {"stages": [_write_part(program, part.name) for part in program.parts()]}


def _make_pipeline(given: Mapping[str, Any], depth: int) -> Pipeline:
    if not isinstance(given["stages"], list):
        raise ConfigurationError("`stages` is a list of parts")
    return Pipeline(*[_make_part(part, depth) for part in given["stages"]])


def _by_field(on: Any, what: str) -> str:
    if not isinstance(on, str):
        raise ConfigurationError(f"a function as {what} cannot be saved; name a field that decides")
    return on


def _write_route(route: Route) -> dict[str, Any]:
    for value in route.routes:
        if isinstance(value, Enum):
            raise ConfigurationError(
                f"a route for {told(value)} cannot be saved, since its class is code: give it the key "
                f"{value.value!r}, by which the member is found as well"
            )
        if not isinstance(value, (str, int, bool, type(None))):
            raise ConfigurationError(f"a route for {value!r} cannot be saved: it has no JSON form")
    return {
        "on": _by_field(route.on, "on="),
        "routes": [[value, _write_part(route, told(value))] for value in route.routes],
        "default": _write_part(route, "default") if route.default is not None else None,
    }


def _make_route(given: Mapping[str, Any], depth: int) -> Route:
    pairs = given["routes"]
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ConfigurationError("`routes` is a list of pairs of a value and a part")
    if not all(isinstance(value, (str, int, bool, type(None))) for value, _ in pairs):
        raise ConfigurationError("the values of `routes` are texts, whole numbers, true, false or null")
    default = _make_part(given["default"], depth) if given["default"] is not None else None
    return Route(_by_field(given["on"], "on"), {value: _make_part(p, depth) for value, p in pairs}, default)


def _write_loop(loop: Loop) -> dict[str, Any]:
    return {
        "body": _write_part(loop, "body"),
        "until": _by_field(loop.until, "until="),
        "max_iterations": loop.max_iterations,
    }


def _make_loop(given: Mapping[str, Any], depth: int) -> Loop:
    if type(given["max_iterations"]) is not int:
        raise ConfigurationError("`max_iterations` is a whole number")
    return Loop(_make_part(given["body"], depth), _by_field(given["until"], "until"), given["max_iterations"])


def _make_format(given: Mapping[str, Any], _depth: int) -> Format:
    if not isinstance(given["template"], str) or not isinstance(given["output"], str):
        raise ConfigurationError("`template` and `output` are texts")
    return Format(given["template"], output=given["output"])


def _make_retrieve(given: Mapping[str, Any], _depth: int) -> Retrieve:
    if type(given["k"]) is not int:
        raise ConfigurationError("`k` is a whole number")
    return Retrieve(k=given["k"])


def _make_recorded(given: Mapping[str, Any], depth: int) -> Recorded:
    if not isinstance(given["field"], str):
        raise ConfigurationError("`field` is a text")
    return Recorded(construct(given["module"], depth), given["field"])


_KINDS: Final[Mapping[str, _Kind]] = {
    "Predict": _Kind(Predict, ("signature",), _write_predict, _make_predict),
    "ChainOfThought": _Kind(
        ChainOfThought, ("signature",), lambda it: _write_predict(it.predict), _make_chain_of_thought
    ),
    "MultiChainComparison": _Kind(
        MultiChainComparison, ("signature", "M"), _write_comparison, _make_comparison
    ),
    "Ensemble": _Kind(
        *(EnsembledProgram, ("programs", "reduce", "size", "deterministic")),
        _write_ensemble,
        _make_ensemble,
    ),
    "RLM": _Kind(
        *(RLM, ("signature", *_RLM_LIMITS)),
        lambda it: _write_coding(it, _RLM_LIMITS),
        lambda given, _depth: RLM(**_coding(given, _RLM_LIMITS)),
    ),
    "ProgramOfThought": _Kind(
        *(ProgramOfThought, ("signature", "max_iters")),
        lambda it: _write_coding(it, ("max_iters",)),
        lambda given, _depth: ProgramOfThought(**_coding(given, ("max_iters",))),
    ),
    "Pipeline": _Kind(Pipeline, ("stages",), _write_stages, _make_pipeline),
    "Program": _Kind(Program, ("parts", "strategy"), _write_program, _make_program, ("intensity",)),
    "Fork": _Kind(Fork, ("parts",), _write_parts, lambda given, depth: Fork(**_make_parts(given, depth))),
    "Route": _Kind(Route, ("on", "routes", "default"), _write_route, _make_route),
    "Loop": _Kind(Loop, ("body", "until", "max_iterations"), _write_loop, _make_loop),
    "Format": _Kind(
        *(Format, ("template", "output")),
        lambda it: {"template": it.template, "output": it.output},
        _make_format,
    ),
    "Retrieve": _Kind(Retrieve, ("k",), lambda it: {"k": it.k}, _make_retrieve),
    "Recorded": _Kind(
        *(Recorded, ("module", "field")),
        lambda it: {"module": describe(it.module), "field": it.field},
        _make_recorded,
    ),
}
