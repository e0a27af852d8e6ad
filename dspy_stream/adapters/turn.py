"""A row's own turn: its inputs, each in the frame that the adapter puts around fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from dspy_stream.adapters.blocks import Content, Pieces, assembled, broken_text
from dspy_stream.adapters.bound import Bound
from dspy_stream.adapters.markers import escape, marker
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature

__all__ = ["Inputs", "Layout", "MARKED", "writer"]

Inputs = Mapping[str, Any]
Write = Callable[[Any], "str | Pieces"]


class Layout(NamedTuple):
    """What stands around a field's text, and how the text is kept from passing for it.

    ``sign`` is what a text must contain before ``escape`` can change it.
    """

    before: Callable[[str], str]
    after: Callable[[str], str]
    escape: Callable[[str], str]
    sign: str


MARKED: Final = Layout(lambda name: f"{marker(name)}\n", lambda _name: "", escape, "[[")


def writer(
    signature: type[Signature], fields: Iterable[Bound], ending: str, layout: Layout = MARKED
) -> Callable[[Inputs], Content]:
    """A function from values to one text of all the ``fields``, followed by ``ending``.

    Where a value holds content blocks, the turn is blocks, with the texts around them. It raises
    AdapterRenderError where a value is missing or cannot be written.
    """
    plan: list[tuple[str, str, Write]] = []
    typed: list[tuple[str, Callable[[Any], Any]]] = []
    closing = ""
    for field in fields:
        if field.codec.typed is not None:
            typed.append((field.name, field.codec.typed))
        plan.append((field.name, closing + layout.before(field.name), field.codec.write))
        closing = f"{layout.after(field.name)}\n\n"
    ending = (closing[:-2] if plan else "") + ending
    sign, made_harmless = layout.sign, layout.escape

    def write_all(inputs: Inputs) -> Content:
        parts: list[Any] = []
        for name, lead, write in plan:
            try:
                value = inputs[name]
            except KeyError:
                value = _default(signature, name, inputs)
            try:
                text: Any = value if type(value) is str else write(value)
            except ValueProblem as problem:
                raise AdapterRenderError(f"input field `{name}`: {problem}") from None
            parts.append(lead)
            parts.append(made_harmless(text) if sign in text else text)
        parts.append(ending)
        try:
            content = "".join(parts)
        except TypeError:  # pieces, where a value holds content blocks; nothing is asked of the others
            return _of_pieces(parts, plan, made_harmless)
        if not content.isascii():
            _refuse_surrogates(content, parts, plan)
        return content

    return _with_types(write_all, typed) if typed else write_all


def _with_types(
    write_all: Callable[[Inputs], Content], typed: list[tuple[str, Callable[[Any], Any]]]
) -> Callable[[Inputs], Content]:
    """The same where a text is not what is shown, but stands for a value, as an address for a picture."""

    def write(inputs: Inputs) -> Content:
        made: dict[str, Any] = {}
        for name, convert in typed:
            if type(inputs.get(name)) is str:
                try:
                    made[name] = convert(inputs[name])
                except ValueProblem as problem:
                    raise AdapterRenderError(f"input field `{name}`: {problem}") from None
        return write_all({**inputs, **made} if made else inputs)

    return write


def _of_pieces(parts: list[Any], plan: list[tuple[str, str, Write]], escape: Callable[[str], str]) -> Content:
    for (name, _, _), made in zip(plan, parts[1::2], strict=True):
        if broken_text(tuple(made) if isinstance(made, Pieces) else made):
            raise _broken(name)
    return assembled(parts, escape)


def _default(signature: type[Signature], name: str, inputs: Inputs) -> Any:
    if signature.may_omit(name):
        return signature.default_of(name)
    given = ", ".join(list(inputs)[:20]) or "nothing"
    raise AdapterRenderError(f"input field `{name}` is missing; given: {given}")


def _refuse_surrogates(content: str, parts: list[str], plan: list[tuple[str, str, Write]]) -> None:
    try:
        content.encode()
    except UnicodeEncodeError:
        texts = zip((name for name, _, _ in plan), parts[1::2], strict=True)
        broken = [name for name, text in texts if text.encode("utf-8", "ignore").decode() != text]
        raise _broken(broken[0] if broken else "?") from None


def _broken(name: str) -> AdapterRenderError:
    return AdapterRenderError(f"input field `{name}` holds half of a surrogate pair, which is no text")
