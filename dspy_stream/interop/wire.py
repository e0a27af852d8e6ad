"""What DSPy hands to a model, as a request of ours, and an answer of ours in the forms DSPy reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from dspy_stream.errors import LMConfigurationError
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
    form = options.get("response_format")
    if inspect.isclass(form) and hasattr(form, "model_json_schema"):
        options["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": _closed(form.model_json_schema())},
        }
    return options, cache is None or bool(cache), rollout_id


def _closed(schema: Any) -> Any:
    """A schema in which every object names all its members and allows no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    # What stands beside a reference is refused by providers, and so are defaults.
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    made = {name: value for name, value in schema.items() if name != "default"}
    for name in ("properties", "$defs"):
        if isinstance(made.get(name), Mapping):
            made[name] = {key: _closed(value) for key, value in made[name].items()}
    for name in ("items", "anyOf", "oneOf", "allOf", "prefixItems"):
        if name in made:
            made[name] = _closed(made[name])
    if isinstance(made.get("properties"), Mapping):
        made["required"] = list(made["properties"])
        made["additionalProperties"] = False
    return made


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


class Shape(dict[str, Any]):
    """A mapping whose items are attributes too, as the objects of OpenAI's client are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def completion(response: Response, model: str) -> Shape:
    """The response in the form of OpenAI's chat completions."""
    choices = []
    for number, choice in enumerate(response.choices):
        extra = dict(choice.extra or {})
        logprobs = extra.pop("logprobs", None)
        citations = extra.pop("citations", None)
        message = Shape(
            role="assistant", content=choice.text, tool_calls=extra.pop("tool_calls", None), **extra
        )
        if citations:
            message["provider_specific_fields"] = {"citations": citations}
        choices.append(
            Shape(index=number, message=message, finish_reason=choice.finish_reason, logprobs=logprobs)
        )
    return Shape(
        id=response.request_id,
        object="chat.completion",
        model=response.model or model,
        choices=choices,
        usage=usage_of(response),
        cache_hit=response.cached,
        _hidden_params={"response_cost": None if response.cached else response.usage.cost},
    )


def usage_of(response: Response) -> Shape:
    """What was paid for; nothing where the journal answered."""
    if response.cached:
        return Shape()
    used = response.usage
    return Shape(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.total_tokens,
    )
