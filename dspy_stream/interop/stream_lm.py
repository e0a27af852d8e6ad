"""StreamLM: a model of this package where DSPy wants one of its own."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dspy  # type: ignore[import-not-found, import-untyped, unused-ignore]
import orjson
from dspy.utils.callback import with_callbacks  # type: ignore[import-not-found, import-untyped, unused-ignore]

from dspy_stream import runtime
from dspy_stream.errors import DSPyStreamError, LMConfigurationError, LMError
from dspy_stream.interop.mapped import theirs
from dspy_stream.interop.passage import KEY, READING, Passage, Reading
from dspy_stream.interop.wire import Heads, completion, messages_of, options_of, outputs, usage_of
from dspy_stream.lm.base import LM, Model, resolve
from dspy_stream.modules.scope import process_clients
from dspy_stream.runtime import Ask, Steps
from dspy_stream.types import Request, Response

__all__ = ["StreamLM", "stream_lm"]

_KNOWN: Final = 64


class StreamLM(dspy.BaseLM):  # type: ignore[misc, unused-ignore]
    """A ``dspy.BaseLM`` whose calls go through this package's layers: journal, limits, retries, budget.

    ``model`` is a name, whose ``options`` are then those of an ``LM`` of this package (``api_base``,
    ``api_key``); such an ``LM``; or a ``dspy.LM``, whose name, address, key and options are taken over. Of
    the two ``options`` go before the model's own. In a flow the calls belong to
    the row; outside, ``dspy.configure(lm=StreamLM("openai/gpt-4o-mini"))`` gives DSPy the journal of
    ``dspy_stream.settings``. DSPy's cache and history have no part in them; its usage tracker
    hears of those that were paid for, where one is at work.

    Raises:
        LMConfigurationError: an option is none of a request, such as a key beside a model that is made.

    Raises (when called):
        ContextWindowExceededError and others of DSPy's names, with the error of this package as
        their cause: where the DSPy at hand has them; otherwise the error of this package.
    """

    def __init__(self, model: Any, *, callbacks: list[Any] | None = None, **options: Any) -> None:
        if isinstance(model, str) and model:
            source: Model = LM(model, **options)
            options = {}
        else:
            source = _translated(model) if isinstance(model, dspy.BaseLM) else resolve(model)
        options_of(options)
        super().__init__(
            model=source.model,
            model_type=getattr(source, "model_type", "chat"),
            cache=bool(options.pop("cache", source.cache)),
        )
        self.source = source
        self.callbacks = list(callbacks or [])
        self.num_retries = getattr(source, "num_retries", 0)
        # The two that programs of DSPy take to be there.
        self.kwargs: dict[str, Any] = {"temperature": None, "max_tokens": None, **source.options, **options}
        if source.rollout_id is not None:
            self.kwargs.setdefault("rollout_id", source.rollout_id)
        self._heads = Heads()

    # ------------------------------------------------------------------------------ what it can do

    @property
    def supports_function_calling(self) -> bool:
        """Whether tools are called natively."""
        return self.source.capabilities.tools

    @property
    def supports_reasoning(self) -> bool:
        """Whether the model thinks before it answers."""
        return self.source.capabilities.reasoning

    @property
    def supports_response_schema(self) -> bool:
        """Whether answers can be held to a schema."""
        return self.source.capabilities.structured_outputs

    @property
    def supported_params(self) -> set[str]:
        """Options that the model is known to take."""
        can = self.source.capabilities
        found = {"temperature", "top_p", "max_tokens", "stop", "n", "seed"}
        if can.json_mode or can.structured_outputs:
            found.add("response_format")
        if can.tools:
            found |= {"tools", "tool_choice", "parallel_tool_calls"}
        if can.reasoning:
            found.add("reasoning_effort")
        if can.logprobs:
            found |= {"logprobs", "top_logprobs"}
        return found

    # ------------------------------------------------------------------------------------- calling

    @with_callbacks  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """A list of texts, or of mappings where there is more than text."""
        if prompt is not None and not isinstance(prompt, str):  # one of DSPy's requests
            return dspy.BaseLM.__call__.__wrapped__(self, prompt, **kwargs)
        return self._outputs(self._respond(prompt, messages, kwargs), kwargs)

    @with_callbacks  # type: ignore[untyped-decorator, unused-ignore]
    async def acall(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """The same from a coroutine."""
        if prompt is not None and not isinstance(prompt, str):
            return await dspy.BaseLM.acall.__wrapped__(self, prompt, **kwargs)
        return self._outputs(await self._arespond(prompt, messages, kwargs), kwargs)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """The response in the form of OpenAI's chat completions."""
        return completion(self._respond(prompt, messages, kwargs), self.model)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """The same from a coroutine."""
        return completion(await self._arespond(prompt, messages, kwargs), self.model)

    def _outputs(self, response: Response, kwargs: Mapping[str, Any]) -> list[Any]:
        tracker = dspy.settings.usage_tracker
        if tracker is not None and not response.cached:
            tracker.add_usage(self.model, dict(usage_of(response)))
        return outputs(response, logprobs=bool({**self.kwargs, **kwargs}.get("logprobs")))

    def _respond(
        self, prompt: str | None, messages: Sequence[Mapping[str, Any]] | None, kwargs: Mapping[str, Any]
    ) -> Response:
        passage: Passage | None = dspy.settings.get(KEY)
        steps = self._steps(self._request(prompt, messages, kwargs), passage, READING.get())
        return runtime.perform(steps) if passage is None else passage.ask(steps)

    async def _arespond(
        self, prompt: str | None, messages: Sequence[Mapping[str, Any]] | None, kwargs: Mapping[str, Any]
    ) -> Response:
        passage: Passage | None = dspy.settings.get(KEY)
        steps = self._steps(self._request(prompt, messages, kwargs), passage, READING.get())
        return await (runtime.aperform(steps) if passage is None else passage.aask(steps))

    def _request(
        self, prompt: str | None, messages: Sequence[Mapping[str, Any]] | None, kwargs: Mapping[str, Any]
    ) -> Request:
        options, cache, rollout_id = options_of({**self.kwargs, "cache": self.cache, **kwargs})
        asked = messages_of(prompt, messages)
        return Request(self._heads.of(self.model, asked[:-1], options), asked[-1:], rollout_id, cache)

    def _steps(self, request: Request, passage: Passage | None, reading: Reading | None) -> Steps[Response]:
        passage = passage or Passage("thread")
        ticket, scope = passage.ticket, passage.scope
        if ticket.spoiled is not None:
            request = request.with_rollout(ticket.rollout(request))
        if not request.cache:
            request = request.kept_as(ticket.private_key(request))
        client = (scope.clients if scope is not None else process_clients()).get(self.source)
        if reading is not None:
            reading.asked.append(request)
        try:
            response: Response = yield Ask(client, request)
        except DSPyStreamError as error:
            passage.failed(error, reading)
            known = theirs(error) if isinstance(error, LMError) and error.scope == "row" else error
            if known is error:
                raise
            raise known from error
        passage.count(response, self.model)
        if reading is not None:
            reading.text = response.text
        return response

    # -------------------------------------------------------------------------------------- copies

    def copy(self, **kwargs: Any) -> StreamLM:
        """The same model with other options; None takes one away."""
        made = copy.copy(self)
        made.history, made.callbacks, made.kwargs = [], list(self.callbacks), dict(self.kwargs)
        for name, value in kwargs.items():
            if name == "model":
                raise LMConfigurationError(
                    "a copy asks the same model; make another StreamLM for another one"
                )
            if name in ("cache", "num_retries", "model_type", "callbacks", "history"):
                setattr(made, name, value)
            elif value is None and name not in ("temperature", "max_tokens"):
                made.kwargs.pop(name, None)
            else:
                made.kwargs[name] = value
        options_of(made.kwargs)
        return made

    def __deepcopy__(self, memo: object) -> StreamLM:
        return self.copy()

    def dump_state(self) -> dict[str, Any]:
        """The saved form of the model, as DSPy reads it; no key."""
        given = {name: value for name, value in self.kwargs.items() if value is not None}
        return {**self.source.dump_state(), **given}

    def __repr__(self) -> str:
        return f"StreamLM({self.source!r})"


def stream_lm(lm: Any) -> StreamLM:
    """A model that a program of DSPy names, as one whose calls go through this package's layers.

    Raises:
        LMConfigurationError: it is of a class whose calls cannot.
    """
    return lm if isinstance(lm, StreamLM) else StreamLM(lm)


_translations: Final[OrderedDict[bytes, Model]] = OrderedDict()


def _translated(lm: Any) -> Model:
    """A ``dspy.LM`` as an LM of this package: the same model, place and options."""
    if isinstance(lm, StreamLM):
        return lm.source
    if type(lm) is not dspy.LM or not isinstance(getattr(lm, "_engine_spec", "auto"), str):
        raise LMConfigurationError(
            f"{type(lm).__name__} calls its model in a way of its own, so its calls cannot be journaled; "
            "name the model with lm=..., or put dspy_stream.interop.StreamLM(...) in its place"
        )
    given = {name: value for name, value in lm.kwargs.items() if value is not None}
    settings = {
        "model_type": lm.model_type,
        "cache": bool(lm.cache),
        "num_retries": getattr(lm, "num_retries", None),
        "api_base": given.pop("api_base", None) or given.pop("base_url", None),
        "api_key": given.pop("api_key", None),
        "timeout": given.pop("timeout", None),
        "rollout_id": given.pop("rollout_id", None),
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    options, _, _ = options_of(given)
    named = orjson.dumps([lm.model, settings, options], default=repr, option=orjson.OPT_SORT_KEYS)
    key = hashlib.sha256(named).digest()  # and not the key that is part of it
    found = _translations.get(key)
    if found is None:
        found = _translations[key] = LM(lm.model, **settings, **options)
        while len(_translations) > _KNOWN:
            _translations.popitem(last=False)
    return found
