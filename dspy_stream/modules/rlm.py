"""RLM: a model that looks at long inputs by way of code, instead of reading them in its prompt."""

from __future__ import annotations

import keyword
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.errors import SignatureError
from dspy_stream.interpreters.base import CodeInterpreter, FinalOutput, InterpreterFactory
from dspy_stream.lm.base import Model
from dspy_stream.modules.coding import check_factory, factory_for, interpreting, python_in, ran
from dspy_stream.modules.module import Module
from dspy_stream.modules.notebook import Step, shortened, shown_steps, shown_variables
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.queries import Queries
from dspy_stream.modules.settled import settled
from dspy_stream.program import (
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
    make_signature,
)
from dspy_stream.program.types import Tool

__all__ = ["RLM"]

_log: Final = logging.getLogger("dspy_stream")
_RESERVED: Final = frozenset(("llm_query", "llm_query_batched", "SUBMIT", "print"))
_RESULTS: Final = frozenset(("trajectory", "final_reasoning"))
_SIMPLE: Final = (str, int, float, bool, list, dict)


class RLM(Module):
    """A model that works on inputs of any length with code: a recursive language model.

    The inputs are variables of a Python session, of which the prompt shows how they begin and end. In
    each turn the model writes code, and sees in the next what it printed. The code may look at the
    inputs, call ``tools``, ask a model about pieces of them (``llm_query(prompt)``, and
    ``llm_query_batched(prompts)`` at the same time), and ends the work with ``SUBMIT(...)``, whose values
    are checked by the types of the outputs. After ``max_iters`` turns the outputs are written from what
    was seen. Code that fails is shown its error.

    The prediction has the outputs, ``trajectory`` (a list of dicts with ``reasoning``, ``code``, ``output``)
    and ``final_reasoning``.

    It runs code that a model writes, so it does so only where an interpreter is named: as
    ``interpreter_factory``, here or in a call or in ``configure``; :class:`PythonInterpreter` is ours. Each
    call has a session of its own. The calls of ``llm_query`` go through the same journal, budgets and limits
    as all others, and after a crash are answered by the journal; the code itself runs again, and where
    it does something else then (random numbers, the time), so do the calls after it.

    Tools run here, not in the sandbox: they hold up other rows as long as they block, and do what the
    code asks. Pick them accordingly.

    Args:
        signature: a Signature class, or its string form.
        max_iters: how many turns at most.
        max_llm_calls: how many questions of the code at most; more are refused.
        max_output_chars: characters of each output that the model sees.
        verbose: log every turn.
        tools: functions or Tools that code may call.
        sub_lm: the model for the questions of code; the one in force without.
        interpreter_factory: makes an interpreter.

    Raises:
        SignatureError: (when made) a field or a tool has a name that is taken.
        ConfigurationError: (when called) no interpreter is named.
        ValueError: (when called) an input is missing, or unknown.
        CodeInterpreterError: (when called) the interpreter cannot go on.

    See Zhang, Kraska and Khattab, "Recursive Language Models", 2025.

    >>> from dspy_stream.interpreters import PythonInterpreter
    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> rlm = RLM("text -> longest: str", interpreter_factory=PythonInterpreter)
    >>> rlm.set_lm(ScriptedLM([
    ...     {"reasoning": "Look.", "code": "words = text.split(); print(len(words))"},
    ...     {"reasoning": "Take it.", "code": "```python\\nSUBMIT(max(words, key=len))\\n```"},
    ... ]))
    >>> done = rlm(text="a word and a longer one")
    >>> done.longest, [step["output"] for step in done.trajectory]
    ('longer', ['6\\n', "FINAL: {'longest': 'longer'}"])
    """

    def __init__(
        self,
        signature: str | type[Signature],
        max_iters: int = 20,
        max_llm_calls: int = 50,
        max_output_chars: int = 10_000,
        verbose: bool = False,
        tools: Iterable[Callable[..., Any]] | None = None,
        sub_lm: Model | str | None = None,
        interpreter_factory: InterpreterFactory | None = None,
    ) -> None:
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters
        self.max_llm_calls = max_llm_calls
        self.max_output_chars = max_output_chars
        self.verbose = verbose
        self.sub_lm = sub_lm
        # Kept where no walk looks for parts: a factory may be a class.
        self._interpreter_factory = check_factory(interpreter_factory)
        self._tools = _gathered(tools)
        _check_names(self.signature, self._tools)
        self.generate_action = Predict(self._action_signature())
        self.extract = Predict(self._extract_signature())

    @property
    def tools(self) -> dict[str, Tool]:
        """The tools that were given, by name."""
        return dict(self._tools)

    def composition(self) -> Any:
        """The tools, whose code decides the answers; part of the program's digest."""
        return list(self._tools.values())

    # ------------------------------------------------------------------------------------ prompts

    def _action_signature(self) -> type[Signature]:
        inputs = ", ".join(f"`{name}`" for name in self.signature.input_fields)
        outputs = ", ".join(self.signature.output_fields)
        wanted = "\n".join(f"- {bound.line}" for bound in fields_of(self.signature).outputs)
        tools = "".join(f"- {tool.format()}\n" for tool in self._tools.values())
        instructions = (
            f"{self.signature.instructions}\n\n"
            f"You do this with code. {inputs} are variables of a Python session, and may be far longer than "
            "what you are shown of them. In each turn you write Python; it is run, and in the next turn you "
            f"see what it printed. Variables stay from turn to turn. You are to find:\n{wanted}\n\n"
            "Your code can use:\n"
            "- `llm_query(prompt)`: a language model's answer to a text; for what takes understanding, such "
            "as a summary or a judgement of a piece of an input\n"
            "- `llm_query_batched(prompts)`: the same for a list of texts at once, which is much faster\n"
            f"- `SUBMIT({outputs})`: hands in the outputs, and ends the work\n{tools}"
            f"You may ask the language model {self.max_llm_calls} times in all.\n\n"
            "Look before you work: print how long the inputs are and pieces of them. Go in small steps, and "
            "print whatever you want to see. Find places with Python, and understand what is there with "
            "`llm_query`. Do not type long values again; use the variables that hold them. Check results "
            "that look odd, such as nothing or zero. Call `SUBMIT` in a turn of its own, once you have seen "
            "that the outputs are right."
        )
        return (
            make_signature({}, instructions)
            .append("variables_info", InputField(desc="the session and its variables"), str)
            .append("repl_history", InputField(desc="your turns so far, and what they printed"), str)
            .append("iteration", InputField(desc="which turn this is, and of how many"), str)
            .append("reasoning", OutputField(desc="what you know, what is missing, what to do next"), str)
            .append("code", OutputField(desc="the Python to run, in a ```python fence"), str)
        )

    def _extract_signature(self) -> type[Signature]:
        instructions = (
            f"{self.signature.instructions}\n\n"
            "Code was written to do this, in turns, which are at an end now. From what the turns have shown, "
            "give the outputs as well as you can."
        )
        return (
            make_signature(dict(self.signature.output_fields), instructions)
            .prepend("repl_history", InputField(desc="the turns, and what they printed"), str)
            .prepend("variables_info", InputField(desc="the session and its variables"), str)
        )

    # ------------------------------------------------------------------------------------ calling

    def forward(self, *, interpreter_factory: InterpreterFactory | None = None, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there.

        ``interpreter_factory`` goes before the one the module has.
        """
        values = self._values(inputs)
        factory = factory_for("RLM", check_factory(interpreter_factory) or self._interpreter_factory)
        about = shown_variables(values, fields_of(self.signature).inputs)
        rules = getattr(factory, "execution_instructions", "")
        if rules:
            about = f"{rules}\n\n{about}"
        steps: list[Step] = []
        with interpreting("RLM", factory) as interpreter:
            self._equip(interpreter)
            for turn in range(self.max_iters):
                said = self.generate_action(
                    variables_info=about,
                    repl_history=shown_steps(steps, self.max_output_chars),
                    iteration=f"{turn + 1}/{self.max_iters}",
                )
                if not turn:
                    settled(interpreter.start())
                step, outputs = self._turn(interpreter, said, values)
                steps.append(step)
                self._log(turn, step)
                if outputs is not None:
                    return _made(outputs, steps, step.reasoning)
        _log.info("RLM: %d turns without SUBMIT; the outputs are written from what they showed", len(steps))
        given = self.extract(variables_info=about, repl_history=shown_steps(steps, self.max_output_chars))
        outputs = {name: given[name] for name in self.signature.output_fields}
        return _made(outputs, steps, "Extract forced final output")

    def _values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        fields = self.signature.input_fields
        unknown = sorted(set(inputs) - set(fields))
        if unknown:
            raise ValueError(f"Unexpected inputs not declared in the signature: {unknown}")
        missing = sorted(name for name in self.required_names() if name not in inputs)
        if missing:
            raise ValueError(f"Missing required inputs: {missing}")
        return {name: inputs[name] if name in inputs else self.signature.default_of(name) for name in fields}

    def _equip(self, interpreter: CodeInterpreter) -> None:
        interpreter.tools.update(Queries(self.max_llm_calls, self.sub_lm).tools())
        interpreter.tools.update(self._tools)
        if hasattr(interpreter, "output_fields"):
            interpreter.output_fields = [
                {"name": name, **({"type": kind.__name__} if (kind := field.annotation) in _SIMPLE else {})}
                for name, field in self.signature.output_fields.items()
            ]

    def _turn(
        self, interpreter: CodeInterpreter, said: Any, values: Mapping[str, Any]
    ) -> tuple[Step, dict[str, Any] | None]:
        """Run the code of a turn; the outputs where it has handed in good ones."""
        reasoning, code = str(said.reasoning or ""), str(said.code or "")
        try:
            code = python_in(code)
            result, wrong = ran(interpreter, code, values)
        except SyntaxError as error:
            result, wrong = None, str(error)
        if wrong is not None:
            return Step(reasoning, code, f"[Error] {wrong}"), None
        if not isinstance(result, FinalOutput):
            return Step(reasoning, code, _printed(result)), None
        outputs, wrong = self._checked(result.output)
        return Step(reasoning, code, wrong or f"FINAL: {outputs}"), outputs

    def _checked(self, given: Any) -> tuple[dict[str, Any] | None, str | None]:
        """The outputs as their types say; or what is wrong with them."""
        bound = fields_of(self.signature).outputs
        names = ", ".join(self.signature.output_fields)
        if not isinstance(given, Mapping):
            return (
                None,
                f"[Error] SUBMIT was given {type(given).__name__}, and takes the fields {names}",
            )
        missing = [each.name for each in bound if each.name not in given and not each.may_omit]
        if missing:
            return None, f"[Error] Missing output fields: {sorted(missing)}. Use SUBMIT({names})"
        made, problems = {}, []
        for each in bound:
            if each.name not in given:
                made[each.name] = self.signature.default_of(each.name)
                continue
            try:
                made[each.name] = each.codec.accept(given[each.name])
            except ValueProblem as error:
                problems.append(f"{each.name}: {error}")
        return (None, f"[Type Error] {'; '.join(problems)}") if problems else (made, None)

    def _log(self, turn: int, step: Step) -> None:
        if self.verbose:
            output = shortened(step.output, self.max_output_chars)
            _log.info("RLM turn %d\n%s\n%s\n%s", turn + 1, step.reasoning, step.code, output)

    # ------------------------------------------------------------------------------------- fields

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs."""
        return tuple(self.signature.input_fields)

    def required_names(self) -> tuple[str, ...]:
        """Those of them that have no default."""
        return tuple(name for name in self.signature.input_fields if not self.signature.may_omit(name))

    def output_names(self) -> tuple[str, ...]:
        """The signature's outputs, the turns, and the last reasoning."""
        return (*self.signature.output_fields, "trajectory", "final_reasoning")


def _made(outputs: Mapping[str, Any], steps: Iterable[Step], reasoning: str) -> Prediction:
    return Prediction(**outputs, trajectory=[step.to_dict() for step in steps], final_reasoning=reasoning)


def _printed(result: Any) -> str:
    text = "\n".join(map(str, result)) if isinstance(result, list) else "" if result is None else str(result)
    return text or "(nothing was printed)"


def _gathered(tools: Iterable[Callable[..., Any]] | None) -> dict[str, Tool]:
    if isinstance(tools, Mapping):
        raise TypeError(
            "tools must be a list, not a dict; Tool(function, name=...) gives a function another name"
        )
    made: dict[str, Tool] = {}
    for each in tools or ():
        if not callable(each):
            raise TypeError(f"Tool {each!r} must be callable, got {type(each).__name__}")
        tool = each if isinstance(each, Tool) else Tool(each)
        if tool.name in made:
            raise SignatureError(f"Duplicate tool name '{tool.name}'")
        made[tool.name] = tool
    return made


def _check_names(signature: type[Signature], tools: Mapping[str, Tool]) -> None:
    for name in tools:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise SignatureError(f"Invalid tool name '{name}': must be a valid Python identifier, no keyword")
        if name in _RESERVED:
            raise SignatureError(f"Tool name '{name}' conflicts with built-in sandbox function")
    inputs = set(signature.input_fields)
    for names, what in (
        (inputs & {"interpreter_factory"}, "Input fields conflict with the option of a call"),
        (inputs & _RESERVED, "Input fields conflict with built-in sandbox functions"),
        (inputs & set(tools), "Input fields conflict with user tools"),
        (set(signature.output_fields) & _RESULTS, "Output fields conflict with RLM result metadata"),
    ):
        if names:
            raise SignatureError(f"{what}: {sorted(names)}")
