"""Predict: one signature, one call, one prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dspy_stream import configuration
from dspy_stream.adapters import Adapter
from dspy_stream.configuration import settings
from dspy_stream.engine import Answer, Plan, Ticket, ask
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.base import LM, Model, resolve
from dspy_stream.lm.kwargs import check_options
from dspy_stream.modules.given import given, inputs_of
from dspy_stream.modules.module import Module
from dspy_stream.modules.planning import asking, plan_for
from dspy_stream.modules.saved_predictor import read_state
from dspy_stream.modules.scope import (
    HINT,
    HINTS,
    NO_HINT,
    SCOPE,
    TICKET,
    TRACE,
    Attempt,
    Scope,
    default_adapter,
    default_lm,
    process_clients,
)
from dspy_stream.program import Example, Prediction, PredictorParameters, Signature, ensure_signature
from dspy_stream.program.refusals import ByPlace, SavedStateError
from dspy_stream.program.types.base import saved_form
from dspy_stream.program.watch import WATCHER
from dspy_stream.runtime import Steps, aperform, perform

__all__ = ["Predict"]


class Predict(Module):
    """Ask a model to fill a signature's outputs from its inputs.

    Args:
        signature: a Signature class, or its string form.
        callbacks: who hears of this predictor's calls.
        **config: options of every call, such as ``temperature``, ``n`` or ``rollout_id``.

    A call takes the inputs by name and may override, for itself only, ``signature``, ``demos``,
    ``config`` and ``lm``. ``prediction.completions`` holds all ``n`` completions. Inputs that the
    signature does not have are logged and left out, and so are, with the setting
    ``warn_on_type_mismatch``, values that do not fit their type logged. Where DSPy only logs that an
    input is missing, and pays for an answer to half a question, this raises.

    Raises (when called):
        ValueError: positional arguments, or an input without a default is missing.
        AdapterParseError: the answer could not be read, nor could its repair.
        LMError: the model could not be asked.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> qa = Predict("question -> answer")
    >>> qa(question="2 + 2?", lm=ScriptedLM(["[[ ## answer ## ]]\\n4\\n\\n[[ ## completed ## ]]"])).answer
    '4'
    """

    def __init__(
        self, signature: str | type[Signature], callbacks: Iterable[Any] | None = None, **config: Any
    ) -> None:
        super().__init__(callbacks)
        self.signature: type[Signature] = ensure_signature(signature)
        check_options(config)
        self.config: dict[str, Any] = config
        self.stage = "predict"
        self.reset()

    def reset(self) -> None:
        """Forget demos, traces and the model of its own."""
        self.lm: Model | None = None
        self.demos: list[Any] = []
        self.traces: list[Any] = []
        self.train: list[Any] = []
        self._made: _Made | None = None

    def update_config(self, **config: Any) -> None:
        """Change options of every later call."""
        check_options(config)
        self.config = {**self.config, **config}

    def get_config(self) -> dict[str, Any]:
        """Options of every call."""
        return dict(self.config)

    # ------------------------------------------------------------------------------------ calling

    def forward(self, *args: Any, **kwargs: Any) -> Prediction:
        """Answer, blocking until the answer is there."""
        self._refuse_positional(args)
        return perform(self._answer(*given(self.signature, kwargs)))

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not self._plain():
            return await super()._acall(args, kwargs)
        self._refuse_positional(args)
        return await aperform(self._answer(*given(self.signature, kwargs)))

    def _plain(self) -> bool:
        """False for a subclass with a program of its own."""
        return type(self).forward is Predict.forward and not self._has_aforward()

    def _refuse_positional(self, args: tuple[Any, ...]) -> None:
        if args:
            names = list(self.signature.input_fields)
            raise ByPlace(
                "Positional arguments are not allowed when calling Predict, must use keyword arguments that "
                f"match your signature input fields: '{', '.join(names)}', as in "
                f"predict({', '.join(f'{name}=...' for name in names)})"
            )

    def input_names(self) -> tuple[str, ...] | None:
        """The signature's inputs."""
        return inputs_of(self.signature)[0] if self._plain() else super().input_names()

    def required_names(self) -> tuple[str, ...]:
        """The signature's inputs that have no default."""
        if not self._plain():
            return super().required_names()
        return inputs_of(self.signature)[1]

    def output_names(self) -> tuple[str, ...] | None:
        """The signature's outputs."""
        return tuple(self.signature.output_fields) if self._plain() else None

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The call as steps, for one row; nothing in the row can override a setting."""
        if type(self) is Predict or self._plain():
            return self._answer(inputs, None)
        return super().steps(inputs)

    def _answer(self, inputs: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> Steps[Prediction]:
        scope = SCOPE.get()
        plan = scope.plans.get(id(self)) if scope is not None and overrides is None else None
        if plan is None:
            plan = self._plan(scope, overrides)
        asked = inputs
        if scope is not None and scope.attempt is not None and scope.attempt.hinted:
            asked = {**inputs, HINT: HINTS.get().get(id(self), NO_HINT)}
        steps = ask(plan, asked, TICKET.get() or Ticket())
        watcher = WATCHER.get()
        answer = yield from steps if watcher is None else watcher.attend(self, plan, steps)
        if len(answer.completions) == 1:
            made = Prediction.of(answer.completions[0], answered=True)
        else:
            made = self._prediction(answer, overrides)
        trace = TRACE.get()
        if trace is None:
            trace = configuration.shared_trace
        if trace is not None:
            trace.append((self, dict(inputs), made))
            if len(trace) > settings.max_trace_size:
                del trace[0]
        return made

    def _prediction(self, answer: Answer, overrides: Mapping[str, Any] | None) -> Prediction:
        signature = overrides.get("signature") if overrides else None
        return Prediction.from_completions(
            list(answer.completions), ensure_signature(signature) if signature else self.signature
        )

    # ----------------------------------------------------------------------------------- planning

    def _plan(self, scope: Scope | None, overrides: Mapping[str, Any] | None) -> Plan:
        learned = scope.parameters.get(id(self)) if scope is not None else None
        if scope is not None and learned is not None and overrides is not None:
            return _under(self, learned, scope, overrides)
        if scope is not None and overrides is None:
            made_plan = (
                _Made.of(self, scope, {}).plan if learned is None else _under(self, learned, scope, {})
            )
            scope.plans[id(self)] = made_plan
            return made_plan
        made = self._made
        wanted = _Ingredients.of(self, scope, overrides or {})
        if made is None or made.ingredients != wanted:
            made = _Made(wanted, wanted.plan(scope))
            if overrides is None:
                self._made = made
        elif made.ingredients.lm is not wanted.lm:  # the same questions; others hear of them
            made = _Made(wanted, asking(made.plan, wanted.lm))
            if overrides is None:
                self._made = made
        return made.plan

    # -------------------------------------------------------------------------------- saved state

    def current_parameters(self) -> PredictorParameters:
        """What can be learned, as a value."""
        return PredictorParameters.of(
            instructions=self.signature.instructions, demos=self.demos, config=self.config
        )

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The state in DSPy's layout, as JSON; without ``json_mode`` the demos are as they are."""
        demos: list[Any] = list(self.demos)
        if json_mode:
            demos = [dict(demo) for demo in PredictorParameters.of(demos=_saved(demos)).demos]
        return {
            "traces": [],
            "train": [],
            "demos": demos,
            "signature": self.signature.dump_state(),
            "lm": self.lm.dump_state() if self.lm is not None else None,
        }

    def with_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> Predict:
        """A copy of this predictor with a saved state.

        Raises:
            ValueError: the state has other fields than the signature, or is not a state.
        """
        parts = read_state(state, self.signature, servers=allow_unsafe_lm_state)
        made = Predict(parts.signature, **self.config)
        made.demos = [dict(demo) for demo in parts.demos]
        made.lm = parts.lm if parts.lm is not None else self.lm
        return made

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> Predict:
        """Take over a saved state, and return this predictor.

        Raises:
            ConfigurationError: the state does not fit; nothing was changed.
        """
        if "signature" not in state and set(state) - {"metadata"} == {"self"}:
            state = state["self"]
        try:
            made = self.with_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        except (ConfigurationError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SavedStateError(f"the saved state does not fit: {error}") from error
        self.__dict__.update(made.__dict__)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_made": None}  # a plan holds connections; the copy makes its own

    def __deepcopy__(self, memo: dict[int, Any]) -> Predict:
        made = super().__deepcopy__(memo)
        made.lm = self.lm  # a model is immutable, and its connections are for all who ask it
        if made.demos is self.demos:  # one of them holds what cannot be copied
            made.demos = list(self.demos)
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.signature.signature!r})"


def _saved(demos: Sequence[Any]) -> list[Any]:
    """The demos with their pictures, sounds and files as DSPy saves them."""
    return [
        saved_form(dict(demo.items(include_dspy=True)) if isinstance(demo, Example) else demo)
        for demo in demos
    ]


class _Ingredients:
    """Everything a plan is made from, compared by identity where that is enough."""

    __slots__ = ("adapter", "attempt", "clients", "config", "demos", "lm", "signature")

    def __init__(
        self,
        signature: type[Signature],
        demos: Sequence[Any],
        config: dict[str, Any],
        lm: Model,
        adapter: Adapter,
    ) -> None:
        self.signature = signature
        if isinstance(demos, (str, Mapping)) or not isinstance(demos, Iterable):
            raise ConfigurationError(f"demos={demos!r}: a list of dicts or Examples is expected")
        self.demos = list(demos)
        self.config = config
        self.lm = lm
        self.adapter = adapter
        self.clients: Any = None
        self.attempt: Attempt | None = None

    @staticmethod
    def of(predict: Predict, scope: Scope | None, overrides: Mapping[str, Any]) -> _Ingredients:
        signature = overrides.get("signature")
        lm = overrides.get("lm") or predict.lm
        made = _Ingredients(
            predict.signature if signature is None else ensure_signature(signature),
            predict.demos if overrides.get("demos") is None else overrides["demos"],
            {**predict.config, **overrides["config"]} if overrides.get("config") else dict(predict.config),
            default_lm(scope) if lm is None else resolve(lm),
            default_adapter(scope),
        )
        made.clients = scope.clients if scope is not None else process_clients()
        made.attempt = scope.attempt if scope is not None else None
        return made

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Ingredients)
            and self.signature is other.signature
            and self.adapter is other.adapter
            and self.clients is other.clients
            and self.attempt == other.attempt
            and self.lm == other.lm
            and self.config == other.config
            and len(self.demos) == len(other.demos)
            and all(mine is theirs for mine, theirs in zip(self.demos, other.demos, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def plan(self, scope: Scope | None) -> Plan:
        signature, config = self.signature, self.config
        if self.attempt is not None:
            signature, config = self.attempt.signature(signature), self.attempt.config(config, self.lm)
        return plan_for(
            self.lm,
            self.adapter,
            signature=signature,
            demos=self.demos,
            config=config,
            clients=scope.clients if scope is not None else process_clients(),
        )


class _Made:
    """A plan and what it was made from."""

    __slots__ = ("ingredients", "plan")

    def __init__(self, ingredients: _Ingredients, plan: Plan) -> None:
        self.ingredients = ingredients
        self.plan = plan

    @staticmethod
    def of(predict: Predict, scope: Scope | None, overrides: Mapping[str, Any]) -> _Made:
        ingredients = _Ingredients.of(predict, scope, overrides)
        return _Made(ingredients, ingredients.plan(scope))


def _under(predict: Predict, given: PredictorParameters, scope: Scope, overrides: Mapping[str, Any]) -> Plan:
    """The plan of a predictor under parameters that are not its own, but for what a call overrides."""
    signature = predict.signature
    if given.instructions is not None and given.instructions != signature.instructions:
        signature = signature.with_instructions(given.instructions)
    lm = LM.load_state(given.lm) if given.lm is not None else predict.lm
    asked = {name: value for name, value in overrides.items() if value is not None}
    config = {**given.config, **asked.pop("config", {})}
    base = {"signature": signature, "demos": list(given.demos), "lm": lm}
    made = _Ingredients.of(predict, scope, {**base, **asked})
    made.config = config
    return made.plan(scope)
