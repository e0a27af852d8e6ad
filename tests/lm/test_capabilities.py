"""What models are known to do, and how a user corrects it."""

from __future__ import annotations

import pytest

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm import LM, LocalLM, ScriptedLM
from dspy_stream.lm.capabilities import capabilities_of
from dspy_stream.types import Capabilities

NOTHING = Capabilities()


@pytest.mark.parametrize(
    ("model", "able"),
    [
        ("openai/gpt-4o-mini", "structured_outputs json_mode tools images files logprobs"),
        ("openai/gpt-4o-2024-05-13", "json_mode tools images logprobs"),
        ("openai/gpt-5-mini", "structured_outputs json_mode tools reasoning images files"),
        ("openai/responses/gpt-5-mini", "structured_outputs json_mode tools reasoning images files"),
        ("openai/gpt-5-chat-latest", "json_mode images"),
        (
            "openai/gpt-6.1-sol",
            "structured_outputs json_mode reasoning images files",
        ),  # tools by responses only
        ("openai/gpt-5.6-luna", "structured_outputs json_mode reasoning images files"),
        ("openai/responses/gpt-5.6-luna", "structured_outputs json_mode tools reasoning images files"),
        ("openai/gpt-5.5", "structured_outputs json_mode tools reasoning images files"),
        ("openai/responses/gpt-6.1-sol", "structured_outputs json_mode tools reasoning images files"),
        ("openrouter/openai/gpt-6-sol", "structured_outputs json_mode tools reasoning images files"),
        ("azure/gpt-35-turbo", ""),
        ("openai/o3-mini", "structured_outputs json_mode tools reasoning"),
        ("openai/o1-mini", "reasoning"),
        ("openai/gpt-3.5-turbo", "json_mode tools logprobs"),
        ("azure/gpt-4o", "structured_outputs json_mode tools images files logprobs"),
        ("azure/our-deployment", ""),
        ("anthropic/claude-3-opus-20240229", "tools images prompt_cache"),
        (
            "anthropic/claude-3-7-sonnet-20250219",
            "tools reasoning images files prompt_cache citations thoughts thinks_if_told",
        ),
        (
            "anthropic/claude-haiku-4-5",
            "structured_outputs tools reasoning images files prompt_cache citations thoughts thinks_if_told",
        ),
        ("gemini/gemini-1.5-flash", "json_mode tools images audio files"),
        (
            "gemini/gemini-2.5-pro",
            "structured_outputs json_mode tools reasoning images audio files thoughts thinks_if_told",
        ),
        (
            "gemini/gemini-4-neon",
            "structured_outputs json_mode tools reasoning images audio files thoughts thinks_if_told",
        ),
        ("google/gemini-2.5-flash-image", ""),
        ("gemini/gemma-3-27b-it", ""),
        ("openrouter/openai/gpt-4o", "structured_outputs json_mode tools images files logprobs"),
        (
            "openrouter/anthropic/claude-haiku-4.5:beta",
            "structured_outputs tools reasoning images files thoughts thinks_if_told",
        ),
        (
            "openrouter/google/gemini-2.5-pro",
            "structured_outputs json_mode tools reasoning images audio files thoughts thinks_if_told",
        ),
        ("openrouter/somebody/something", ""),
        ("deepseek/deepseek-reasoner", "json_mode tools reasoning thoughts"),
        ("deepseek/deepseek-flash", "json_mode tools reasoning images"),
        ("deepseek/deepseek-v4-flash", "json_mode tools reasoning"),
        ("xai/grok-code-fast-1", "structured_outputs json_mode tools"),
        ("ollama_chat/llava", "structured_outputs json_mode images"),
        ("hosted_vllm/any/thing", "structured_outputs json_mode logprobs"),
        ("together_ai/x/y", ""),
        ("nosuch/model", ""),
        ("local/nearest", ""),
        ("", ""),
    ],
)
def test_what_is_known(model: str, able: str) -> None:
    assert capabilities_of(model) == Capabilities(**dict.fromkeys(able.split(), True))


def test_a_user_knows_better() -> None:
    assert LM("openai/gpt-4o").capabilities == capabilities_of("openai/gpt-4o")
    lm = LM("hosted_vllm/x", capabilities={"tools": True, "logprobs": False})
    assert lm.capabilities == Capabilities(structured_outputs=True, json_mode=True, tools=True)
    assert lm.copy(temperature=0.5).capabilities == lm.capabilities
    assert lm.copy(capabilities=NOTHING).capabilities == NOTHING
    assert lm != LM("hosted_vllm/x")
    with pytest.raises(LMConfigurationError, match=r"no capability 'magic'; known: structured_outputs"):
        LM("openai/x", capabilities={"magic": True})


def test_models_that_only_write_text_say_so() -> None:
    assert LocalLM().capabilities == ScriptedLM("x").capabilities == NOTHING
    assert LM("openai/gpt-3.5-turbo-instruct", model_type="text").capabilities == NOTHING


def test_the_format_that_a_model_is_asked_in_counts_too() -> None:
    assert LM("openai/gpt-6-sol", api_key="", model_type="responses").capabilities.tools
    assert LM("openai/gpt-6-sol", api_key="", model_type="text").capabilities == NOTHING
