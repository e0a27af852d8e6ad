"""From a model's text to a signature's outputs, with everything that is wrong said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from dspy_stream.adapters.bound import Fields
from dspy_stream.adapters.parse import MAX_LENGTH, NotJSON, floats
from dspy_stream.adapters.problem import ValueProblem, excerpt
from dspy_stream.adapters.repeated import Repeated, differ
from dspy_stream.adapters.write import json_text
from dspy_stream.errors import AdapterParseError
from dspy_stream.events import ignored
from dspy_stream.program import Signature

__all__ = ["Reader"]

_REASON: Final = 1500
_THOUGHT: Final = "</think>"


class Reader:
    """Reads answers to one signature.

    Attributes:
        ignored: fields that answers held and nobody had asked for, added up over all answers.
    """

    __slots__ = ("_adapter", "_find", "_readers", "_signature", "_thoughts", "_where", "ignored")

    def __init__(
        self,
        adapter_name: str,
        signature: type[Signature],
        fields: Fields,
        *,
        find: Callable[[str], Mapping[str, Any]],
        text: bool,
        where: Callable[[str], str],
        thoughts: bool = True,
    ) -> None:
        """Prepare to read.

        Args:
            adapter_name: for errors.
            signature: for errors and defaults.
            fields: the compiled signature.
            find: splits an answer into raw values by name, with those of fields that come again; may
                raise NotJSON.
            text: whether raw values are text, to be read, or plain data, to be accepted.
            where: how the place of a field in an answer is called, for errors.
            thoughts: whether ``<think>`` at the beginning is reasoning, and no part of the answer.
        """
        self._adapter = adapter_name
        self._signature = signature
        self._find = find
        self._where = where
        self._thoughts = thoughts
        self._readers = tuple(
            (out.name, out.codec.read if text else out.codec.accept, out.may_omit) for out in fields.outputs
        )
        self.ignored = 0

    def __call__(self, text: str, *, first: bool = False) -> dict[str, Any]:
        """The outputs, in the order of the signature; with ``first`` a second value counts for nothing.

        Raises:
            AdapterParseError: the answer is empty, misses a field, has one that is not valid, or gives
                one twice with different values.
        """
        try:
            return self._outputs(text, first=first)
        except AdapterParseError:
            # Of a model whose prompt begins its thoughts only their end is sent.
            _, end, rest = text.partition(_THOUGHT)
            if not (self._thoughts and end) or "<think>" in text:
                raise
            with suppress(AdapterParseError):
                return self._outputs(rest, first=first)
            raise

    def _outputs(self, text: str, *, first: bool) -> dict[str, Any]:
        try:
            found = self._find(_checked(text, self._thoughts))
        except (NotJSON, ValueProblem) as problem:
            raise self._error(text, str(problem)) from None
        values: dict[str, Any] = {}
        problems: list[str] = []
        missing: list[str] = []
        taken = 0
        for name, read, may_omit in self._readers:
            if name in found:
                taken += 1
                try:
                    values[name] = read(found[name])
                except ValueProblem as problem:
                    problems.append(f"{name}: {problem}")
            elif may_omit:
                values[name] = self._signature.default_of(name)
            else:
                missing.append(name)
        if len(found) > taken:
            extra = len(found) - taken
            self.ignored += extra
            asked = {name for name, _, _ in self._readers}
            ignored(self._adapter, extra, (str(name) for name in found if name not in asked))
        if type(found) is Repeated and not first:
            problems += self._contradictions(found, values)
        # An answer without a single field is free text, such as a refusal, whatever the defaults.
        if problems or missing or taken == 0:
            raise self._error(text, self._reason(missing, problems, taken), values if taken else {})
        return values

    def _reason(self, missing: list[str], problems: list[str], taken: int) -> str:
        if taken == 0:
            names = ", ".join(self._where(name) for name, _, _ in self._readers)
            return f"it has none of the fields that were asked for: {names}"
        if missing:
            problems = [f"there is no {', '.join(map(self._where, missing))}", *problems]
        return "; ".join(problems)

    def _contradictions(self, found: Repeated, values: Mapping[str, Any]) -> list[str]:
        problems: dict[str, str] = {}
        readers = {name: read for name, read, _ in self._readers if name in values}
        for name, raw in found.again:
            if name not in readers or name in problems:
                continue
            try:
                value = readers[name](raw)
            except ValueProblem:
                continue  # something that only looks like the field
            if differ(value, values[name]):
                both = f"{_shown(found[name])} and as {_shown(raw)}"
                problems[name] = f"{name}: {self._where(name)} is given twice, as {both}; give it once"
        return list(problems.values())

    def _error(self, text: str, reason: str, parsed: dict[str, Any] | None = None) -> AdapterParseError:
        reason = reason if len(reason) <= _REASON else reason[:_REASON] + "..."
        return AdapterParseError(self._adapter, self._signature, text, reason, parsed)


def _shown(raw: Any) -> str:
    return excerpt(raw if isinstance(raw, str) else json_text(floats(raw)))


def _checked(text: str, thoughts: bool) -> str:
    if not text or text.isspace():
        raise ValueProblem("it is empty")
    if len(text) > MAX_LENGTH:
        raise ValueProblem(f"it is longer than {MAX_LENGTH} characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueProblem(f"character {error.start} is half of a surrogate pair") from None
    if thoughts and "<think>" in text[:64]:
        # Reasoning that a server did not split off; it may quote the layout of the answer.
        thought, end, rest = text.partition(_THOUGHT)
        if end and thought.lstrip().startswith("<think>"):
            return rest
    return text
