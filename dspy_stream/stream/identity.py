"""What an adapter is, for a flow's identity: another one asks in other words and reads other answers."""

from __future__ import annotations

from typing import Any, Final

from dspy_stream.adapters import Adapter
from dspy_stream.stream.digests import class_digest, value_digest

__all__ = ["adapter_identity"]

_PLAIN: Final = (str, int, float, bool, type(None))
_OURS: Final = "dspy_stream."


def adapter_identity(adapter: Adapter) -> dict[str, Any]:
    """Its class and settings, as JSON, and of a class that is not ours its code.

    Settings are the public attributes: plain values and lists, dicts and sets of them, types, functions,
    models or adapters themselves; of anything else the type.
    """
    kind = type(adapter)
    made: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    code = class_digest(kind)
    if code:
        made["code"] = code
    names = ("fallback", "native_response_types", "parallel_tool_calls")
    settings = {name: getattr(adapter, name, None) for name in names} | vars(adapter)
    made["settings"] = {name: _plain(value) for name, value in settings.items() if not name.startswith("_")}
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Adapter):
        return adapter_identity(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    identity = getattr(value, "identity", None)
    return identity() if callable(identity) else value_digest(value)
