"""Where a model can be asked, when that is in more than one place or with more than one key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.address import parse, parse_base, saved
from dspy_stream.lm.providers import LOCAL, at_place, find, locate
from dspy_stream.lm.secret import Secret

__all__ = ["Backend", "Keys", "bound", "placed"]

_IN_PROCESS: Final = f"{LOCAL}/"

Keys = str | Secret | Sequence[str | Secret] | None
"""A key, or several that share the calls."""


@dataclass(frozen=True, slots=True, repr=False)
class Backend:
    """One of several places that serve the same model, each with its share of the calls.

    ``api_base`` is its address, None for the provider's own; ``api_key`` the key for it, None for the
    environment's; ``weight`` its share beside the others'; ``model`` the name that it knows the
    model by, with its prefix, where that is another one.

    Raises:
        LMConfigurationError: the weight is not above zero.

    >>> Backend(api_base="https://one.example/v1", api_key="sk-secret-of-this-server", weight=2)
    Backend(api_base='https://one.example/v1', weight=2, model=None)
    """

    api_base: str | None = None
    api_key: str | Secret | None = None
    weight: float = 1.0
    model: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < float("inf"):
            raise LMConfigurationError(f"the weight of an endpoint is a number above 0, not {self.weight}")

    def __repr__(self) -> str:
        place = saved(self.api_base) if self.api_base is not None else None
        return f"Backend(api_base={place!r}, weight={self.weight!r}, model={self.model!r})"


def bound(model: str, api_base: str | None, api_key: str | Secret | None) -> Secret | None:
    """Check provider and address, and tie a key to the server that they name now.

    Raises:
        LMConfigurationError: an unknown provider, or a bad address or key.
    """
    provider, _ = find(model, api_base)
    if api_base is not None:
        parse(api_base)
        parse_base(at_place(provider, api_base)[1])
    if api_key is None or isinstance(api_key, Secret):
        return api_key
    return Secret(api_key.strip(), locate(model, api_base=api_base, has_key=True).address.origin)


def placed(
    model: str, api_base: str | None, api_key: Keys, endpoints: Iterable[Backend]
) -> tuple[Secret | None, tuple[Backend, ...]]:
    """The key of a model in one place, or its places where there are several, each with its key bound.

    Raises:
        LMConfigurationError: as :func:`bound`, or the places are named in two ways.
    """
    if api_base is not None and not isinstance(api_base, str):
        raise LMConfigurationError(
            f"{model}: api_base is one URL; several servers are endpoints=[Backend(URL, api_key), ...]"
        )
    several = tuple(endpoints)
    if several and (api_base is not None or api_key is not None):
        raise LMConfigurationError(f"{model}: with endpoints, api_base and api_key are theirs to name")
    if api_key is not None and not isinstance(api_key, (str, Secret)):
        if not api_key:
            raise LMConfigurationError(f"{model}: the list of keys is empty")
        several = tuple(Backend(api_base, key) for key in api_key)
    elif not several:
        if model.startswith(_IN_PROCESS):
            return None, ()
        return bound(model, api_base, api_key), ()
    if model.startswith(_IN_PROCESS):
        raise LMConfigurationError(f"{model} runs in this process; it has neither endpoints nor keys")
    return None, tuple(
        replace(one, api_key=bound(one.model or model, one.api_base, one.api_key)) for one in several
    )
