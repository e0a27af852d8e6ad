"""A model's options: those that may be sent, and how DSPy's programs look at them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from dspy_stream.errors import LMConfigurationError

__all__ = ["Kwargs", "check_options"]

# Names that would let an option change what is asked or how; the rest goes to the provider as it is.
_RESERVED: Final = (
    *("model", "messages", "stream", "headers", "extra_headers"),
    *("api_key", "azure_ad_token"),
)
_HEADERS: Final = (
    "headers are made here, so that a key goes to its own host and is masked: the key is api_key=..., and "
    "what else a server wants is for the `headers` of a format of your own, "
    "register_provider(Provider(..., format=...))"
)
_INSTEAD: Final[Mapping[str, str]] = {
    "api_key": "it is a setting of the model, LM(..., api_key=...)",
    "headers": _HEADERS,
    "extra_headers": _HEADERS,
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

    The fields of ``extra_body`` are options themselves; a model of pydantic's as ``response_format`` is
    its schema.

    Raises:
        LMConfigurationError: an option of a name that is not the user's to set.
    """
    more = options.get("extra_body")
    if more is not None:
        if not isinstance(more, Mapping):
            raise LMConfigurationError("extra_body is a dict of further fields of a request")
        options = {**{name: value for name, value in options.items() if name != "extra_body"}, **more}
    for name in _RESERVED:
        if options.get(name) is not None:
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise LMConfigurationError(f"{name!r} is not an option of a request{instead}")
    made = {name: value for name, value in options.items() if value is not None}
    form = made.get("response_format")
    if inspect.isclass(form) and hasattr(form, "model_json_schema"):
        schema = {"name": "answer", "strict": True, "schema": _closed(form.model_json_schema())}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    return made


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
