"""What DSPy hands to a model, as a request of ours, and an answer of ours in the forms DSPy reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from dspy_stream.dotted import Dotted
from dspy_stream.errors import LMConfigurationError
from dspy_stream.history import completion as chat_completion
from dspy_stream.lm.kwargs import check_options
from dspy_stream.types import Choice, Head, Message, Response, turns_of

__all__ = ["Heads", "completion", "messages_of", "options_of", "outputs"]

_HEADS: Final = 64
# Settings of DSPy's own; no provider is sent them.
_DSPY_ONLY: Final = (
    *("num_retries", "num_generations", "finetuning_model", "launch_kwargs", "train_kwargs"),
    *("engine", "async_engine", "provider", "use_developer_role", "prompt_cache"),
)


def messages_of(prompt: str | None, messages: Sequence[Mapping[str, Any]] | None) -> tuple[Message, ...]:
    """The messages of a call.

    Raises:
        LMConfigurationError: there are none, or one has no role or content.
    """
    if not messages:
        if prompt is None:
            raise LMConfigurationError("pass a prompt, or messages=[...]")
        return (Message("user", prompt),)
    try:
        return turns_of(messages)
    except ValueError as error:
        raise LMConfigurationError(str(error)) from None


def options_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool, int | None]:
    """The options that are sent, whether the answer may be shared, and the rollout asked for.

    Raises:
        LMConfigurationError: an option cannot be sent.
    """
    options = {name: value for name, value in given.items() if name not in _DSPY_ONLY}
    cache = options.pop("cache", None)
    rollout_id = options.pop("rollout_id", None)
    options = check_options(options)
    if options.get("n") == 1:
        del options["n"]
    return options, cache is None or bool(cache), rollout_id


class Heads:
    """Heads of requests, shared by those that begin with the same messages and have the same options."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[Any, Head] = {}

    def of(self, model: str, messages: tuple[Message, ...], options: Mapping[str, Any]) -> Head:
        """The head; made once while few are in use.

        Raises:
            LMConfigurationError: an option is no JSON.
        """
        try:
            named = orjson.dumps(options, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        except TypeError as error:
            raise LMConfigurationError(f"{model}: the options of a request are JSON: {error}") from None
        key = (model, messages, named)
        try:
            found = self._made.get(key)
        except TypeError:  # blocks of content are mappings, which cannot be looked up
            return Head(model, messages, options)
        if found is None:
            if len(self._made) >= _HEADS:
                self._made.clear()
            found = self._made[key] = Head(model, messages, options)
        return found


def outputs(response: Response, *, logprobs: bool) -> list[Any]:
    """One text for each completion, or a mapping where there is more than text, as adapters take them."""
    made = [_output(choice, logprobs) for choice in response.choices]
    return [output["text"] for output in made] if all(len(output) == 1 for output in made) else made


def _output(choice: Choice, logprobs: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"text": choice.text}
    extra = choice.extra
    if extra:
        for name in ("reasoning_content", "tool_calls", "citations"):
            if extra.get(name):
                made[name] = extra[name]
        if logprobs:
            made["logprobs"] = extra.get("logprobs")
    return made


def completion(response: Response, model: str) -> Dotted:
    """The response in the form of OpenAI's chat completions."""
    made = chat_completion(response)
    for choice in made.choices:
        citations = choice.message.pop("citations", None)
        if citations:
            choice.message.provider_specific_fields = {"citations": citations}
    made.update(
        model=response.model or model,
        usage=usage_of(response),
        cache_hit=response.cached,
        _hidden_params={"response_cost": None if response.cached else response.usage.cost},
    )
    return made


def usage_of(response: Response) -> Dotted:
    """What was paid for; nothing where the journal answered."""
    if response.cached:
        return Dotted()
    used = response.usage
    return Dotted(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.total_tokens,
    )
