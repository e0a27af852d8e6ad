"""What a program of DSPy reads and makes, and what decides its answers."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from pydantic import TypeAdapter

from dspy_stream.errors import ConfigurationError

__all__ = [
    "TEXTS",
    "code_of",
    "entry_of",
    "exact_outputs_of",
    "fields_of",
    "given_to",
    "inputs_of",
    "is_async",
    "needs_loop",
    "outputs_of",
    "pasts_of",
    "required_of",
    "state_of",
    "validator_of",
]

# Fields of a row never override what belongs to the program.
PRIVILEGED: Final = frozenset({"signature", "demos", "config", "lm", "prediction", "new_signature", "_trace"})
# DSPy's types that are texts with a name, and where the text is.
TEXTS: Final = {"Reasoning": "content", "Code": "code"}
_EXACT: Final = ("Predict", "ChainOfThought")
_INNER: Final = ("predict", "module", "program", "extract")


def is_async(program: Any) -> bool:
    """True where the program's own class says how it runs as a coroutine.

    Of a class that only has a ``forward`` of its own the inherited ``aforward`` would be another program,
    and so would the inherited ``acall`` of one with a ``__call__`` of its own.
    """
    return entry_of(program)[1] in ("aforward", "acall")


def entry_of(program: Any) -> tuple[type, str]:
    """The method that says how it runs, and the class that has it.

    Raises:
        ConfigurationError: it has none.
    """
    for kind in type(program).__mro__:
        for name in ("aforward", "acall", "forward", "__call__"):
            if _own(kind, name) or (name in vars(kind) and name in ("aforward", "forward")):
                return kind, name
    raise ConfigurationError(f"{type(program).__name__} defines neither forward nor aforward")


def needs_loop(program: Any) -> bool:
    """True where it runs as a coroutine only, or has tools that do."""
    kind, _ = entry_of(program)
    if "forward" not in vars(kind) and not _own(kind, "__call__"):
        return True
    return is_async(program) and any(map(inspect.iscoroutinefunction, _tools(program)))


def signature_of(program: Any) -> Any:
    """The signature of the whole program, where it has one; else None."""
    seen = 0
    while program is not None and seen < len(_INNER) * 2:
        found = getattr(program, "signature", None)
        if hasattr(found, "input_fields") and hasattr(found, "output_fields"):
            return found
        inside = getattr(program, "__dict__", {})
        program = next((inside[name] for name in _INNER if name in inside), None)
        seen += 1
    return None


def _named(program: Any) -> list[inspect.Parameter] | None:
    """The parameters of its forward; None where it takes any."""
    parameters = _parameters(program)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]


def _parameters(program: Any) -> list[inspect.Parameter]:
    kind, name = entry_of(program)
    found = list(inspect.signature(getattr(kind, name)).parameters.values())[1:]
    if any(each.kind is each.VAR_KEYWORD for each in found) and name in ("__call__", "acall"):
        inner = getattr(kind, "forward", None) or getattr(kind, "aforward", None)  # it hands them on
        return list(inspect.signature(inner).parameters.values())[1:] if inner is not None else found
    return found


def _own(kind: type, name: str) -> bool:
    """Whether a class that is not DSPy's has a method of that name."""
    return name in vars(kind) and kind.__module__.partition(".")[0] != "dspy"


def pasts_of(program: Any) -> frozenset[str]:
    """Names of the inputs that are a conversation so far to any of its predictors."""
    return frozenset(
        name
        for _, part in program.named_predictors()
        for name, field in part.signature.input_fields.items()
        if getattr(field.annotation, "__name__", "") == "History"
    )


def given_to(inputs: Mapping[str, Any], pasts: frozenset[str]) -> dict[str, Any]:
    """What a program is called with: a conversation, which rows keep as data, as DSPy's own ``History``.

    Raises:
        ValueError: it is none.
    """
    given = {name: value for name, value in inputs.items() if name not in PRIVILEGED}
    for name in pasts.intersection(given):
        value = given[name]
        if isinstance(value, (Mapping, list)):
            import dspy  # type: ignore[import-not-found, import-untyped, unused-ignore]

            given[name] = dspy.History.model_validate(
                {"messages": value} if isinstance(value, list) else value
            )
    return given


def exact_outputs_of(program: Any) -> tuple[str, ...] | None:
    """Names of all that it returns, of programs that return what their signature says and no more."""
    name, home = type(program).__name__, type(program).__module__
    if name not in _EXACT or home.partition(".")[0] != "dspy":
        return None
    found = outputs_of(program)
    return tuple(found) if found is not None else None


def inputs_of(program: Any) -> tuple[str, ...] | None:
    """Names of the fields that it reads from a row; None where nobody can know."""
    parameters = _named(program)
    if parameters is not None:
        return tuple(parameter.name for parameter in parameters)
    signature = signature_of(program)
    return tuple(signature.input_fields) if signature is not None else None


def required_of(program: Any) -> tuple[str, ...]:
    """Names of the fields without which it cannot run."""
    various = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [parameter for parameter in _parameters(program) if parameter.kind not in various]
    signature = signature_of(program) if not named and _named(program) is None else None
    if signature is None:
        return tuple(parameter.name for parameter in named if parameter.default is parameter.empty)
    return tuple(name for name, field in signature.input_fields.items() if not _may_be_missing(field))


def _may_be_missing(field: Any) -> bool:
    annotation = field.annotation
    if not field.is_required() or getattr(annotation, "__name__", "") == "History":
        return True
    return type(None) in getattr(annotation, "__args__", ())


def outputs_of(program: Any) -> Mapping[str, Any] | None:
    """Its output fields by name; None where only a call would tell."""
    if type(program).__module__.partition(".")[0] != "dspy":  # a forward of the user's returns what it likes
        return None
    signature = signature_of(program)
    if signature is None:
        return None
    found: dict[str, Any] = {}
    for _, part in program.named_predictors():
        if part is program or signature_of(part) is not None:
            found.update(part.signature.output_fields)
    return {name: field for name, field in found.items() if name in signature.output_fields} or None


def validator_of(annotation: Any) -> TypeAdapter[Any] | None:
    """What brings a value back from JSON; None where nothing has to be done, or nothing can."""
    if annotation in (str, int, float, bool) or getattr(annotation, "__name__", "") in TEXTS:
        return None
    try:
        return TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 - a type without a schema, which pydantic says in many ways
        return None


def state_of(program: Any) -> dict[str, Any]:
    """What can be learned or set, by the names of the parts, as JSON with a digest for each."""
    found: dict[str, Any] = {}
    for name, part in program.named_parameters():
        try:
            state = part.dump_state()
        except Exception as error:  # noqa: BLE001 - such as a model without a saved form; it is refused later
            state = {"unknown": type(error).__name__}
        state = {key: value for key, value in state.items() if key not in ("traces", "train")}
        signature: Any = getattr(part, "signature", None)
        fields = []
        if hasattr(signature, "fields"):
            fields = [[key, _type(field.annotation)] for key, field in signature.fields.items()]
        data = orjson.dumps(
            [state, fields, getattr(part, "config", None)],
            default=_plain,
            option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS,
        )
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def fields_of(signature: Any) -> list[Any]:
    """The fields of a signature: names, types, and which are inputs."""
    fields = signature.fields.items()
    return [[name, _type(field.annotation), name in signature.input_fields] for name, field in fields]


def _type(annotation: Any) -> Any:
    try:
        return TypeAdapter(annotation).json_schema()
    except Exception:  # noqa: BLE001 - a type without a schema, which pydantic says in many ways
        return getattr(annotation, "__qualname__", str(annotation))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "toDict"):
        return value.toDict()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def code_of(program: Any) -> list[Any]:
    """The functions that join the parts, of this program and of all below it, and its tools."""
    found: dict[Any, None] = {}
    for part in _modules(program):
        methods = [getattr(type(part), name, None) for name in ("forward", "aforward")]
        kinds = [kind for kind in type(part).__mro__ if kind.__module__.partition(".")[0] != "dspy"]
        methods += [vars(kind).get(name) for kind in kinds for name in ("__call__", "acall")]
        found.update(dict.fromkeys(inspect.unwrap(code) for code in methods if code is not None))
    found.update(dict.fromkeys(_tools(program)))
    return list(found)


def _tools(program: Any) -> Iterator[Any]:
    for part in _modules(program):
        tools = getattr(part, "tools", None)
        for tool in tools.values() if isinstance(tools, Mapping) else ():
            if callable(getattr(tool, "func", None)):
                yield tool.func


def _modules(program: Any) -> Iterator[Any]:
    yield program
    for _, part in program.named_sub_modules():
        if part is not program:
            yield part
