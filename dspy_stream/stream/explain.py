"""What a flow will run: a table of its steps, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.configuration import settings
from dspy_stream.modules.supervision import holds_resources
from dspy_stream.stream import nodes
from dspy_stream.stream.compile import step_ids
from dspy_stream.stream.nodes import Node

if TYPE_CHECKING:
    from dspy_stream.stream.flow import Spec

__all__ = ["explained", "mermaid"]

_HEAD: Final = ("step", "module", "signature", "model", "capacity", "order", "policy")
_WIDEST: Final = 60
_OF_THE_RUN: Final = "(the run's)"


def explained(spec: Spec) -> str:
    """A table with a line for every step, and under it what is to be said about single steps."""
    ids = step_ids([end for end, _ in spec.ends])
    lines: list[Sequence[str]] = [_HEAD]
    notes = []
    for node in _nodes(spec):
        step, operation = ids[id(node)], node.operation
        if isinstance(operation, nodes.Through):
            lines.append((step, *_through(operation, spec)))
            if operation.note:
                notes.append(f"{step}: {operation.note}")
        else:
            lines.append((step, _what(operation), "", "", "", "", ""))
    lines += [(terminal.step, type(terminal.sink).__name__, "", "", "", "", "") for _, terminal in spec.ends]
    return "\n".join([f"flow {spec.name}", "", *_table(lines), *(["", *notes] if notes else [])])


def _nodes(spec: Spec) -> list[Node]:
    """Every node once, each after its parents."""
    return list({id(node): node for end, _ in spec.ends for node in end.chain()}.values())


def _through(step: nodes.Through, spec: Spec) -> tuple[str, ...]:
    predictors = step.module.predictors()
    signatures = "; ".join(dict.fromkeys(str(p.signature.signature) for p in predictors))
    models = ", ".join(dict.fromkeys(_model(predictor.lm, spec) for predictor in predictors))
    module = getattr(step.module, "label", None) or type(step.module).__name__
    return (
        str(module),
        signatures,
        models,
        str(step.place.capacity(step.capacity)),
        step.order,
        _policy(step),
    )


def _model(own: Any, spec: Spec) -> str:
    model = next((lm for lm in (own, settings.lm, spec.defaults.get("lm")) if lm is not None), None)
    if model is None:
        return _OF_THE_RUN
    return model if isinstance(model, str) else str(getattr(model, "model", type(model).__name__))


def _policy(step: nodes.Through) -> str:
    said = []
    if step.timeout is not None:
        said.append(f"{step.timeout:g} s")
    if step.retries:
        said.append(f"{step.retries} {'retry' if step.retries == 1 else 'retries'}")
    if step.fallback is not None:
        said.append(f"then {getattr(step.fallback, 'label', None) or type(step.fallback).__name__}")
    if step.lane is not None:
        said.append("in batches")
    said += _place(step)
    return ", ".join([*said, step.on_error])


def _place(step: nodes.Through) -> list[str]:
    """Where the module's code runs, and what becomes of it when it fails."""
    place, said = step.place, []
    if place.isolation == "thread":
        said.append("in threads")
    if place.isolation == "process":
        said.append("in processes")
    if holds_resources(step.module):
        said.append(place.tree.strategy if place.tree is not None else "one_for_one")
    return said


def _what(operation: Any) -> str:
    if isinstance(operation, nodes.Read):
        return operation.source.name
    if isinstance(operation, nodes.Case):
        if operation.index is None:
            return "every row"
        return f"rows for {operation.name}" if operation.index >= 0 else "what has left the flow"
    if isinstance(operation, nodes.Join):
        return "join of " + ", ".join(name.strip("'\"") for name in operation.names)
    fn = getattr(operation, "fn", None)
    return f"{operation.label} {_name_of(fn)}" if fn is not None else str(operation.label)


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__)).strip("<>")


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_short(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    made = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return [made[0], "  ".join("-" * width for width in widths), *made[1:]]


def _short(cell: str) -> str:
    flat = " ".join(cell.split())
    return flat if len(flat) <= _WIDEST else f"{flat[: _WIDEST - 3]}..."


# ------------------------------------------------------------------------------------ the picture


def mermaid(spec: Spec) -> str:
    """The steps and what flows between them as a Mermaid flowchart."""
    ids = step_ids([end for end, _ in spec.ends])
    names: dict[int, str] = {}
    lines = ["flowchart TD"]
    for node in _nodes(spec):
        operation = node.operation
        if isinstance(operation, (nodes.Case, nodes.Branch)):
            if id(operation.split) not in names:
                name = names[id(operation.split)] = f"s{len(names)}"
                lines.append(f'    {name}{{"{_escaped(_decides(operation))}"}}')
                lines += [_edge(parent, name, names) for parent in node.parents]
            names[id(node)] = names[id(operation.split)]
            continue
        name = names[id(node)] = f"s{len(names)}"
        lines.append(f"    {name}{_box(ids[id(node)], operation)}")
        lines += [_edge(parent, name, names) for parent in node.parents]
    for number, (end, terminal) in enumerate(spec.ends):
        lines.append(f'    w{number}[("{_escaped(terminal.step)}")]')
        lines.append(_edge(end, f"w{number}", names))
    return "\n".join(lines)


def _box(step: str, operation: Any) -> str:
    label = _escaped(step)
    if isinstance(operation, nodes.Read):
        return f'[("{label}<br/>{_escaped(_what(operation))}")]'
    if isinstance(operation, (nodes.Join, nodes.Merge)):
        return f'(("{label}"))'
    if isinstance(operation, nodes.Through):
        signatures = "; ".join(
            dict.fromkeys(str(p.signature.signature) for p in operation.module.predictors())
        )
        return f'["{label}<br/>{_escaped(_short(signatures))}"]' if signatures else f'["{label}"]'
    return f'["{label}"]'


def _edge(parent: Node, name: str, names: Mapping[int, str]) -> str:
    operation = parent.operation
    label = ""
    if isinstance(operation, nodes.Case):
        label = operation.name if operation.index is None or operation.index >= 0 else "left the flow"
    elif isinstance(operation, nodes.Branch):
        label = "yes" if operation.side else "no"
    arrow = f'-- "{_escaped(label)}" -->' if label else "-->"
    return f"    {names[id(parent)]} {arrow} {name}"


def _decides(operation: nodes.Case | nodes.Branch) -> str:
    on = operation.route.on if isinstance(operation, nodes.Case) else operation.fn
    return on if isinstance(on, str) else _name_of(on)


def _escaped(text: str) -> str:
    """As Mermaid takes it between quotation marks."""
    kept = " ".join(text.split()).replace("&", "&amp;").replace('"', "#quot;")
    return kept.replace("<", "&lt;").replace(">", "&gt;")
