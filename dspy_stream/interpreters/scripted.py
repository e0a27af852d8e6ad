"""An interpreter whose results are written down beforehand, for tests of programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters.base import CodeInterpreterError

__all__ = ["ScriptedInterpreter"]


class ScriptedInterpreter:
    """An interpreter that runs nothing: it follows a script, and keeps what it was given in ``calls``.

    The script is a list of results, used up in order, or a function of the code and the variables. A
    result is what ``execute`` returns: a text, a value, a :class:`FinalOutput`; an exception is raised, and
    a function is called with the ``tools``, to stand for code that calls them.

    ``calls`` are pairs of code and variables; ``started`` and ``over`` say how far its session is.

    Raises:
        ConfigurationError: (when code is run) the script has no result left.
        CodeInterpreterError: (when code is run) it was shut down.

    >>> from dspy_stream.interpreters.base import FinalOutput
    >>> python = ScriptedInterpreter(["4\\n", lambda tools: FinalOutput({"answer": tools["twice"](x=2)})])
    >>> python.tools["twice"] = lambda x: 2 * x
    >>> python.execute("print(2 + 2)"), python.execute("SUBMIT(twice(2))")
    ('4\\n', FinalOutput({'answer': 4}))
    """

    execution_instructions = ""

    def __init__(
        self,
        script: Iterable[Any] | Callable[[str, dict[str, Any]], Any] = (),
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.tools: dict[str, Callable[..., Any]] = dict(tools or {})
        self.output_fields: list[dict[str, Any]] | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.started = self.over = False
        self._play = script if callable(script) else self._in_order(script)

    def start(self) -> None:
        """Begin the session."""
        self.started = True

    def execute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """The script's next result."""
        if self.over:
            raise CodeInterpreterError("the interpreter's session is over; make another interpreter")
        self.started = True
        given = dict(variables or {})
        self.calls.append((code, given))
        made = self._play(code, given)
        if isinstance(made, BaseException):
            raise made
        return made(self.tools) if callable(made) else made

    def shutdown(self) -> None:
        """End the session."""
        self.over = True

    @staticmethod
    def _in_order(script: Iterable[Any]) -> Callable[[str, dict[str, Any]], Any]:
        left = deque(script)
        total = len(left)

        def play(code: str, _variables: dict[str, Any]) -> Any:
            if not left:
                raise ConfigurationError(
                    f"ScriptedInterpreter: all {total} results have been used; the code begins {code[:80]!r}"
                )
            return left.popleft()

        return play
