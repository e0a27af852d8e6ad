"""The models of the package itself: values, which do not change once they are made."""

from __future__ import annotations

from typing import Any

from dspy_stream.lm.model import BaseLM, slots
from dspy_stream.types import Capabilities

__all__ = ["SettledLM"]


class SettledLM(BaseLM):
    """A model that is what it was made as: what it was given cannot be set to something else."""

    __slots__ = ()

    @property
    def capabilities(self) -> Capabilities:
        """What the model is known to do beyond text: nothing, where nobody says otherwise."""
        return Capabilities()

    @property
    def supports_function_calling(self) -> bool:
        """Whether it takes tools as such."""
        return self.capabilities.tools

    @property
    def supports_reasoning(self) -> bool:
        """Whether it thinks before it answers, and can be told how hard."""
        return self.capabilities.reasoning

    @property
    def supports_response_schema(self) -> bool:
        """Whether its answers can be held to a JSON schema."""
        return self.capabilities.structured_outputs

    @property
    def supported_params(self) -> set[str]:
        """Names of options that it is known to take, as far as ``capabilities`` say."""
        able = self.capabilities
        named = {
            "response_format": able.json_mode or able.structured_outputs,
            "tools": able.tools,
            "tool_choice": able.tools,
            "reasoning_effort": able.reasoning,
            "logprobs": able.logprobs,
        }
        return {"temperature", "max_tokens", *(name for name, known in named.items() if known)}

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass may keep things of its own beside them.
        if (
            not hasattr(self, "__dict__")
            or name in slots(type(self))
            or isinstance(getattr(type(self), name, None), property)
        ):
            raise AttributeError(f"a model is immutable; use .copy({name}=...) for another one")
        object.__setattr__(self, name, value)

    def dump_state(self) -> dict[str, Any]:
        """The saved form, in DSPy's layout; no key."""
        state = {"model": self.model, "model_type": self.model_type, "cache": self.cache, **self.options}
        if self.rollout_id is not None:
            state["rollout_id"] = self.rollout_id
        if self.by:  # another model than the one it is made from
            state["_dspy_lm_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        return state
