"""OpenAI's responses format: pure encoding and decoding. Every request carries its whole conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.errors import LMConfigurationError, LMError, LMIncompleteError
from dspy_stream.lm.families import is_openai_reasoning
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.openai.dialect import options_of
from dspy_stream.lm.providers.openai.responses_input import items, leading_instructions
from dspy_stream.lm.providers.openai.responses_stream import ResponsesStream
from dspy_stream.lm.providers.schemas import wanted
from dspy_stream.lm.providers.wire import SYSTEM_ROLES, JsonFormat, dumps
from dspy_stream.types import Choice, Message, Request, Response

__all__ = ["Responses"]

_RENAMED: Final = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
_ABSENT: Final = ("seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias")
_ASIDE: Final = "commentary"
_REASONS: Final = {"max_output_tokens": "length", "content_filter": "content_filter"}


class Responses(JsonFormat):
    """Requests to one model of the responses API as bytes, and its answers as responses.

    Nothing is kept at the provider: ``store`` is false unless the options say otherwise, and
    reasoning travels encrypted in ``reasoning_blocks``.

    >>> format = Responses("gpt-4o-mini")
    >>> format.encode(Request.of("openai/gpt-4o-mini", "hi", max_tokens=9))
    b'{"model":"gpt-4o-mini","max_output_tokens":9,"store":false,"input":[{"role":"user","content":"hi"}]}'
    """

    __slots__ = ()

    path = "/responses"
    stream_path = "/responses"
    _wanted = "output"

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one streamed answer."""
        return ResponsesStream(self, headers)

    def _body(self, request: Request, stream: bool) -> bytes:
        head, tail = request.head.messages, request.tail
        if tail and tail[0].role in SYSTEM_ROLES and all(message.role in SYSTEM_ROLES for message in head):
            # The instructions go on behind the head, so that nothing can be kept with it.
            prefix, rest = self._prefix(request.options, request.messages), b""
        else:
            found = request.head.memo.get(self._memo)
            if found is None:
                found = request.head.memo[self._memo] = self._prefix(request.options, head)
            prefix, rest = found, b",".join([dumps(item) for message in tail for item in items(message)])
        comma = b"," if rest and prefix[-1:] == b"}" else b""
        return prefix + comma + rest + (b'],"stream":true}' if stream else b"]}")

    def _prefix(self, options: Mapping[str, Any], messages: tuple[Message, ...]) -> bytes:
        instructions, others = leading_instructions(messages)
        sent: dict[str, Any] = {"model": self._model, **_options(self._model, options)}
        if instructions:
            own = sent.pop("instructions", None)
            sent["instructions"] = f"{own}\n\n{instructions}" if own else instructions
        body = b",".join([dumps(item) for message in others for item in items(message)])
        return dumps(sent)[:-1] + b',"input":[' + body

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        output, status = value.get("output"), value.get("status")
        if value.get("error") or not isinstance(output, list):
            return None
        if status not in ("completed", "incomplete", None):
            raise LMIncompleteError(f"the response is {str(status)[:40]!r} and not completed")
        counter = Counter(value.get("usage"))
        usage = counter.usage(
            counter.take("input_tokens", needed=True),
            counter.take("output_tokens", needed=True),
            self._price,
            cached=counter.detail("input_tokens_details", "cached_tokens"),
            written=counter.detail("input_tokens_details", "cache_write_tokens"),
            reasoning=counter.detail("output_tokens_details", "reasoning_tokens"),
        )
        choice = _choice(output, _finish(value, status))
        if not counter.clean:
            choice = choice._replace(extra={**(choice.extra or {}), "usage_invalid": True})
        model, request_id = value.get("model"), headers.get("x-request-id") or value.get("id")
        return Response(
            (choice,),
            usage,
            model if isinstance(model, str) else self._model,
            request_id if isinstance(request_id, str) else None,
        )

    def refused(self, value: Any, headers: Mapping[str, str], status: int = 200) -> LMError:
        """What a failed response, or the error object in a body, stands for."""
        error = super().refused({"error": value["error"]}, headers, status)
        identity = value.get("id")
        error.request_id = error.request_id or (identity if isinstance(identity, str) else None)
        return error


def _options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given = options_of(model, options)
    for name in _ABSENT:
        if name in given:
            raise LMConfigurationError(f"the responses API has no option {name!r}: leave it out, or use chat")
    given.pop("n", None)  # it gives one answer; the others are asked for one by one
    given.pop("previous_response_id", None)
    text = dict(given.pop("text", None) or {})
    sent: dict[str, Any] = {}
    for name, value in given.items():
        if name == "response_format":
            text.setdefault("format", _format(value))
        elif name == "verbosity":
            text.setdefault("verbosity", value)
        elif name == "reasoning_effort":
            sent["reasoning"] = {"effort": value, **(given.get("reasoning") or {})}
        elif name == "tools":
            sent["tools"] = [_tool(tool) for tool in value]
        elif name == "tool_choice":
            sent["tool_choice"] = _tool_choice(value)
        elif name == "logprobs":
            if value:
                sent["include"] = [*(given.get("include") or ()), "message.output_text.logprobs"]
        else:
            sent.setdefault(_RENAMED.get(name, name), value)
    if text:
        sent["text"] = text
    if not sent.setdefault("store", False) and is_openai_reasoning(model):
        # Reasoning that is not kept there goes back to it with later turns.
        sent["include"] = list(dict.fromkeys([*sent.get("include", ()), "reasoning.encrypted_content"]))
    return sent


def _format(response_format: Any) -> dict[str, Any]:
    form = wanted(response_format)
    if form is None:
        return {"type": "text"}
    if form.schema is None:
        return {"type": "json_object"}
    made = {"type": "json_schema", "name": form.name, "schema": form.schema, "strict": form.strict}
    if form.description is not None:
        made["description"] = form.description
    return {name: value for name, value in made.items() if value is not None}


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or function is None:
        return tool  # one of the provider's own
    made = {"type": "function", "name": function["name"], "parameters": function.get("parameters")}
    made["strict"] = bool(function.get("strict", False))
    if function.get("description") is not None:
        made["description"] = function["description"]
    return made


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and "function" in choice:
        return {"type": "function", "name": choice["function"]["name"]}
    return choice


def _finish(value: dict[str, Any], status: Any) -> str | None:
    if status != "incomplete":
        return "stop"
    details = value.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    return _REASONS.get(reason, "length") if isinstance(reason, str) else "length"


def _choice(output: list[Any], finish: str | None) -> Choice:
    texts: list[str] = []
    extra: dict[str, list[Any]] = {}
    items = [item for item in output if isinstance(item, dict)]
    final = any(item.get("type") == "message" and item.get("phase") != _ASIDE for item in items)
    whole = any(item.get("phase") for item in items)  # which is to be sent back with it
    for item in items:
        kind = item.get("type")
        if kind == "message" and final and item.get("phase") == _ASIDE:  # said on the way to the answer
            _message(item.get("content"), extra.setdefault("reasoning_content", []), {})
        elif kind == "message":
            _message(item.get("content"), texts, extra)
        elif kind == "function_call":
            extra.setdefault("tool_calls", []).append(_call(item))
        elif kind == "custom_tool_call":  # of a tool that takes free text
            custom = {"name": item.get("name"), "input": item.get("input")}
            made = {"id": item.get("call_id") or item.get("id"), "type": "custom", "custom": custom}
            extra.setdefault("tool_calls", []).append(made)
        elif kind == "reasoning":
            whole = whole or bool(texts or "tool_calls" in extra)
            extra.setdefault("reasoning_blocks", []).append(item)
            thoughts = extra.setdefault("reasoning_content", [])
            for group in (item.get("summary"), item.get("content")):
                pieces = group if isinstance(group, list) else ()
                thoughts.extend([piece.get("text") for piece in pieces if isinstance(piece, dict)])
    if "tool_calls" in extra and finish == "stop":
        finish = "tool_calls"
    if whole:  # the order in which it thought and acted is part of what goes back
        extra["reasoning_blocks"] = items
    return Choice("".join(texts), finish, _joined(extra) or None)


def _joined(extra: dict[str, list[Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {name: value for name, value in extra.items() if value}
    for name, between in (("reasoning_content", "\n\n"), ("refusal", "")):
        text = between.join([piece for piece in extra.get(name, ()) if isinstance(piece, str)])
        made.pop(name, None)
        if text:
            made[name] = text
    if "logprobs" in made:
        made["logprobs"] = {"content": made["logprobs"]}
    return made


def _message(content: Any, texts: list[str], extra: dict[str, list[Any]]) -> None:
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if part.get("type") == "refusal":
            extra.setdefault("refusal", []).append(part.get("refusal"))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
            for name in ("annotations", "logprobs"):
                if part.get(name) and isinstance(part[name], list):
                    extra.setdefault(name, []).extend(part[name])


def _call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}
