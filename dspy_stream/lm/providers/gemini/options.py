"""Options in Gemini's form, by what each generation of its models takes (as of 2025-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.families import Gemini, gemini
from dspy_stream.lm.providers.openai.dialect import sendable
from dspy_stream.lm.providers.schemas import inlined, wanted

__all__ = ["options_of"]

# Options inside ``generationConfig``, by their canonical names.
_CONFIG: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
# Gemini's own options that stand beside it.
_BESIDE: Final = {
    "safety_settings": "safetySettings",
    "safetySettings": "safetySettings",
    "cached_content": "cachedContent",
    "cachedContent": "cachedContent",
    "toolConfig": "toolConfig",
    "systemInstruction": "systemInstruction",
}
_NOT_TAKEN: Final = ("user", "parallel_tool_calls")  # nothing an answer depends on
_ABSENT: Final = ("logit_bias", "modalities", "service_tier")
_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY", "any": "ANY"}
_BUDGETS: Final = {
    **{"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576},
}
_LEVELS: Final = {
    **{
        "minimal": "minimal",
        "low": "low",
        "medium": "medium",
        "high": "high",
        "xhigh": "high",
        "max": "high",
    },
}
# The first of the Pros knows two levels only; Flash since 3.7, the later Pros and Argon know three.
_TWO_LEVELS: Final = {**_LEVELS, "minimal": "low", "medium": "high"}
_THREE_LEVELS: Final = {**_LEVELS, "minimal": "low"}
_HIGHER_LEVELS: Final = {**_THREE_LEVELS, "xhigh": "xhigh", "max": "xhigh"}
_WITHOUT_MINIMAL: Final = (3, 7)
# These draw their answers themselves, one at a time, and do nothing with how they are told to.
_SAMPLING: Final = ("temperature", "top_p", "top_k", "n", "candidateCount", "topP", "topK")
_DRAWS_ITSELF: Final = (3, 6)
_DRAWS_ITSELF_LITE: Final = (3, 5)
_PENALTIES: Final = ("presence_penalty", "frequency_penalty")  # refused since 4.0
_JSON_SCHEMA: Final = (2, 5)
_LEAST_BUDGET_OF_PRO: Final = 128  # it cannot be told not to think
_OLDEST: Final = Gemini(1, 0, "")


def options_of(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as members of the request's body.

    Raises:
        LMConfigurationError: an option that Gemini cannot be given.
    """
    version = gemini(model) or _OLDEST
    given = {name: value for name, value in sendable(options).items() if name not in _NOT_TAKEN}
    for name in (*_ABSENT, *(_PENALTIES if version.major >= 4 else ())):
        if given.pop(name, None):
            raise LMConfigurationError(f"Gemini has no option {name!r}: leave it out", model=model)
    if version.version >= (_DRAWS_ITSELF_LITE if "lite" in version.kind else _DRAWS_ITSELF):
        given = {name: value for name, value in given.items() if name not in _SAMPLING}
    sent = {other: given.pop(name) for name, other in _BESIDE.items() if name in given}
    config = dict(given.pop("generationConfig", None) or {})
    stop = given.pop("stop", None)
    if stop is not None:
        config["stopSequences"] = [stop] if isinstance(stop, str) else list(stop)
    _form(given.pop("response_format", None), config, version)
    thinking = _thinking(given.pop("reasoning_effort", None), given.pop("thinking", None), version)
    if thinking is not None:
        config.setdefault("thinkingConfig", thinking)
    _tools(given, sent, version)
    for name, value in given.items():
        config.setdefault(_CONFIG.get(name, name), value)
    if config:
        sent["generationConfig"] = config
    return sent


def _form(response_format: Any, config: dict[str, Any], version: Gemini) -> None:
    form = wanted(response_format)
    if form is None:
        return
    config["responseMimeType"] = "application/json"
    if form.schema is not None:
        if version.version >= _JSON_SCHEMA:
            config["responseJsonSchema"] = form.schema
        else:
            config["responseSchema"] = inlined(form.schema)


def _thinking(effort: Any, thinking: Any, version: Gemini) -> dict[str, Any] | None:
    if isinstance(thinking, Mapping):
        budget = thinking.get("budget_tokens", -1) if thinking.get("type") != "disabled" else 0
        if version.major >= 3:  # told by levels, and not by a number any more
            near = next((name for name, most in _BUDGETS.items() if budget <= most), "high")
            effort = "none" if budget == 0 else "high" if budget < 0 else near
            return _thinking(effort, None, version)
        return {"thinkingBudget": budget, "includeThoughts": budget != 0}
    if effort is None:
        return None
    if _OLDEST.version < version.version < _JSON_SCHEMA:  # of its kind none thinks
        if effort in ("none", "disable"):
            return None
        raise LMConfigurationError(
            f"Gemini {version.major}.{version.minor} does not reason: leave reasoning_effort out"
        )
    pro = version.kind.startswith("pro")
    if effort in ("none", "disable"):
        if version.major >= 3:
            return {"thinkingLevel": _levels(version)["minimal"]}
        return {"thinkingBudget": _LEAST_BUDGET_OF_PRO if pro else 0}
    if effort not in _BUDGETS:
        raise LMConfigurationError(f"reasoning_effort is one of none, {', '.join(_BUDGETS)}; not {effort!r}")
    if version.major >= 3:
        return {"thinkingLevel": _levels(version)[effort], "includeThoughts": True}
    return {"thinkingBudget": _BUDGETS[effort], "includeThoughts": True}


def _levels(version: Gemini) -> Mapping[str, str]:
    kind = version.kind
    if kind.startswith("pro"):
        return _TWO_LEVELS if version.version == (3, 0) else _THREE_LEVELS
    if version.major >= 4 and not kind.startswith("argon"):
        return _HIGHER_LEVELS
    return _LEVELS if version.version < _WITHOUT_MINIMAL or "lite" in kind else _THREE_LEVELS


def _tools(given: dict[str, Any], sent: dict[str, Any], version: Gemini) -> None:
    tools, choice = given.pop("tools", None), given.pop("tool_choice", None)
    if not tools:
        return
    declared = [_declared(tool["function"], version) for tool in tools if "function" in tool]
    own = [tool for tool in tools if "function" not in tool]
    sent["tools"] = [*([{"functionDeclarations": declared}] if declared else ()), *own]
    if isinstance(choice, str):
        sent["toolConfig"] = {"functionCallingConfig": {"mode": _MODES[choice]}}
    elif choice is not None:
        names = [choice["function"]["name"]]
        sent["toolConfig"] = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": names}}


def _declared(function: Mapping[str, Any], version: Gemini) -> dict[str, Any]:
    made = {"name": function["name"], "description": function.get("description") or function["name"]}
    parameters = function.get("parameters")
    if parameters and parameters.get("properties"):  # an object without properties is refused
        if version.version >= _JSON_SCHEMA:
            made["parametersJsonSchema"] = parameters
        else:
            made["parameters"] = inlined(parameters)
    return made
