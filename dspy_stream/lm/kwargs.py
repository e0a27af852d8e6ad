"""A model's options: those that may be sent, and how DSPy's programs look at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from dspy_stream.errors import LMConfigurationError

__all__ = ["Kwargs", "check_options"]

# Names that would let an option change what is asked or how; the rest goes to the provider as it is.
_RESERVED: Final = (
    *("model", "messages", "stream", "headers", "extra_headers", "extra_body"),
    *("api_key", "azure_ad_token"),
)
_HEADERS: Final = (
    "headers are made here, so that a key goes to its own host and is masked: the key is api_key=..., and "
    "what else a server wants is for the `headers` of a format of your own, "
    "register_provider(Provider(..., format=...))"
)
_INSTEAD: Final[Mapping[str, str]] = {
    "headers": _HEADERS,
    "extra_headers": _HEADERS,
    "extra_body": "its fields are options themselves, such as LM(..., top_k=5)",
}


class Kwargs(dict[str, Any]):
    """A model's options to look at: what is not given is None where DSPy has it, and nothing can be set."""

    def __missing__(self, name: str) -> None:
        if name not in ("temperature", "max_tokens"):
            raise KeyError(name)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("a model's options are settled; use lm.copy(temperature=...) for another model")

    __setitem__ = __delitem__ = update = pop = setdefault = clear = popitem = _refuse


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are sent: those that are not None.

    Raises:
        LMConfigurationError: an option of a name that is not the user's to set.
    """
    for name in _RESERVED:
        if options.get(name) is not None:
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise LMConfigurationError(f"{name!r} is not an option of a request{instead}")
    return {name: value for name, value in options.items() if value is not None}
