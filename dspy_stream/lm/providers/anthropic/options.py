"""Options in Anthropic's form, by what each generation of its models takes (as of 2026-11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.families import Claude, claude
from dspy_stream.lm.providers.openai.dialect import sendable
from dspy_stream.lm.providers.schemas import Wanted, closed, wanted

__all__ = ["ANSWER_TOOL", "options_of"]

ANSWER_TOOL: Final = "give_the_answer"
"""The tool whose input is the answer, for models that are not held to a schema in another way."""

_ABSENT: Final = (
    *("seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"),
    "modalities",
)
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_UNKNOWN: Final = Claude(3, 7)  # what servers that copy the format understand
_ADAPTIVE: Final = (4, 6)  # decides by itself how long to think, and is told how hard
_NO_SAMPLING: Final = (4, 7)  # takes no sampling options at all, and no number of tokens to think
_BY_ITSELF: Final = (5, 0)  # thinks unless it is told not to
_NO_OFF: Final = (5, 5)  # of Sonnet: can only be told not to think first
_OFF: Final = (None, "none", "disable")
_HELD_TO_SCHEMA: Final = (4, 5)
_BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}
_LEAST_BUDGET: Final = 1024
_ROOM: Final = 16384  # for thoughts of which nobody said how many
_DEFAULT_MAX: Final = 8192
_DEFAULT_MAX_OLD: Final = 4096  # all that models before 3.5 can write
_TOOL_CHOICES: Final = {"auto": "auto", "required": "any", "any": "any", "none": "none"}


def options_of(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as Anthropic takes them; ``max_tokens``, which it insists on, among them.

    Raises:
        LMConfigurationError: an option that it cannot be given, such as ``seed``.
    """
    version = claude(model) or _UNKNOWN
    given = sendable(options)
    for name in _ABSENT:
        if given.pop(name, None):
            raise LMConfigurationError(f"Anthropic has no option {name!r}: leave it out", model=model)
    given.pop("n", None)  # it gives one answer a call; the others are asked for one by one
    sent: dict[str, Any] = {}
    _limits(given, sent, version)
    _thinking(given, sent, version, model)
    _tools(given, sent)
    _form(wanted(given.pop("response_format", None)), sent, version)
    _unforced(sent, version)
    sent.update({name: value for name, value in given.items() if name not in sent})
    return sent


def _limits(given: dict[str, Any], sent: dict[str, Any], version: Claude) -> None:
    limit = given.pop("max_completion_tokens", None)
    limit = given.pop("max_tokens", limit)
    sent["max_tokens"] = (
        limit if limit is not None else _DEFAULT_MAX if version >= (3, 5) else _DEFAULT_MAX_OLD
    )
    sent["_limited"] = limit is not None
    stop = given.pop("stop", None)
    if stop is not None:
        sent["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    user = given.pop("user", None)
    if user is not None:
        sent["metadata"] = {"user_id": user}


def _thinking(given: dict[str, Any], sent: dict[str, Any], version: Claude, model: str) -> None:
    limited = sent.pop("_limited")
    effort, thinking = given.pop("reasoning_effort", None), given.pop("thinking", None)
    if version >= _ADAPTIVE:
        thinking = _adaptive(given, sent, effort, thinking, version)
    elif thinking is None and effort not in _OFF:
        thinking = {"type": "enabled", "budget_tokens": _budget(effort, sent["max_tokens"], limited)}
    if thinking is not None:
        sent["thinking"] = thinking
    told = _thinks(sent)
    if told and version < (3, 7):
        raise LMConfigurationError(f"{model} does not reason: leave reasoning_effort out", model=model)
    thinks = told or (thinking is None and version >= _BY_ITSELF)
    if thinks and not limited:  # what it thinks is counted among the answer's tokens
        room = (thinking or {}).get("budget_tokens")
        sent["max_tokens"] += room or _BUDGETS.get(sent.get("output_config", {}).get("effort"), _ROOM)
    if thinks or version >= _NO_SAMPLING:
        for name in _SAMPLING:
            given.pop(name, None)


def _thinks(sent: Mapping[str, Any]) -> bool:
    return "thinking" in sent and sent["thinking"].get("type") in ("adaptive", "enabled")


def _adaptive(
    given: dict[str, Any],
    sent: dict[str, Any],
    effort: Any,
    thinking: Mapping[str, Any] | None,
    version: Claude,
) -> dict[str, Any] | None:
    """The member ``thinking`` for models that decide by themselves how long to think; None for none.

    Since 4.7 they take no number of tokens and hide their thoughts from who does not ask for them, and
    since 5.0 they think unless told not to; one that cannot be told so is asked for the least.
    """
    kind = thinking.get("type") if thinking is not None else None
    made = dict(thinking) if thinking is not None else None
    if kind == "disabled" or (kind is None and effort in ("none", "disable")):
        effort = "low" if version.thinks_always else None
        off = "between_tools" if version >= _NO_OFF and version.tier == "sonnet" else "disabled"
        told = not version.thinks_always and (kind is not None or version >= _BY_ITSELF)
        made = {"type": off} if told else None
    elif version >= _NO_SAMPLING and (kind == "enabled" or (kind is None and effort is not None)):
        kept = {name: value for name, value in (made or {}).items() if name != "budget_tokens"}
        made = {"display": "summarized", **kept, "type": "adaptive"}
    elif kind is None and effort is not None:
        made = {"type": "adaptive"}
    config = dict(given.pop("output_config", None) or {})
    if effort not in _OFF:
        config.setdefault("effort", _effort(effort, version))
    if config:
        sent["output_config"] = config
    if version.binds_thinking and given.get("tools") and (made is None or made["type"] == "adaptive"):
        # A turn that was cut out or changed since must not make the whole conversation invalid.
        made = {
            "type": "adaptive",
            "block_binding": {"prefix_mismatch_behavior": "drop_block"},
            **(made or {}),
        }
    return made


def _effort(effort: Any, version: Claude) -> Any:
    if effort == "minimal":
        return "low"
    return "high" if effort == "xhigh" and version < _NO_SAMPLING else effort


def _budget(effort: Any, limit: Any, limited: bool) -> int:
    """Tokens for thinking: they are part of ``max_tokens``, of which the answer keeps half."""
    budget = _BUDGETS.get(effort)
    if budget is None:
        raise LMConfigurationError(f"reasoning_effort is one of {', '.join(_BUDGETS)}, and not {effort!r}")
    if not limited:
        return budget
    if limit < 2 * _LEAST_BUDGET:
        raise LMConfigurationError(
            f"reasoning needs max_tokens of at least {2 * _LEAST_BUDGET}, thinking included, and not {limit}"
        )
    return int(min(budget, limit // 2))


def _tools(given: dict[str, Any], sent: dict[str, Any]) -> None:
    tools = given.pop("tools", None)
    if tools:
        sent["tools"] = [_tool(tool) for tool in tools]
    choice, parallel = given.pop("tool_choice", None), given.pop("parallel_tool_calls", None)
    if not tools:
        return
    made: dict[str, Any] | None = None
    if isinstance(choice, str):
        made = {"type": _TOOL_CHOICES[choice]}
    elif choice is not None:
        made = {"type": "tool", "name": choice["function"]["name"]} if "function" in choice else dict(choice)
    if parallel is False:
        made = {**(made or {"type": "auto"}), "disable_parallel_tool_use": True}
    if made is not None:
        sent["tool_choice"] = made


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if function is None:
        return tool  # one of the provider's own
    made = {
        "name": function["name"],
        "description": function.get("description"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
        "strict": function.get("strict") or None,
        "cache_control": tool.get("cache_control"),
    }
    return {name: value for name, value in made.items() if value is not None}


def _form(form: Wanted | None, sent: dict[str, Any], version: Claude) -> None:
    """Hold the answer to a schema. Without one there is nothing to hold to: the prompt must ask for JSON."""
    if form is None or form.schema is None:
        return
    schema = closed(form.schema) if version >= _HELD_TO_SCHEMA else None
    if schema is not None:
        sent["output_config"] = {
            **(sent.get("output_config") or {}),
            "format": {"type": "json_schema", "schema": schema},
        }
        return
    described = form.description or "Give the answer: call this once, with the whole answer."
    tool = {"name": ANSWER_TOOL, "description": described, "input_schema": form.schema}
    own = bool(sent.get("tools"))
    sent["tools"] = [*(sent.get("tools") or ()), tool]
    sent["tool_choice"] = {"type": "any"} if own else {"type": "tool", "name": ANSWER_TOOL}


def _unforced(sent: dict[str, Any], version: Claude) -> None:
    """Leave the choice to a model that thinks first, or that cannot be forced to call a tool."""
    choice = sent.get("tool_choice")
    if choice and choice["type"] in ("any", "tool") and (version.takes_no_orders or _thinks(sent)):
        kept = {name: value for name, value in choice.items() if name not in ("type", "name")}
        sent["tool_choice"] = {"type": "auto", **kept}
