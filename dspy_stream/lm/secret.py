"""A key that can be sent to one place and shown nowhere."""

from __future__ import annotations

import hmac
from typing import NoReturn

from dspy_stream.errors import LMConfigurationError

__all__ = ["Secret", "masked"]

_HIDDEN = "***"
_SECRET = 16


_known: set[str] = set()


def masked(text: str) -> str:
    """``text`` without the keys that this process has been given, for what the user's own code may quote.

    >>> key = Secret("sk-another-secret-key", "https://api.openai.com")
    >>> masked("no luck with sk-another-secret-key")
    'no luck with ***'
    """
    for value in tuple(_known):
        text = text.replace(value, _HIDDEN)
    return text


class Secret:
    """A key bound to one origin; printing, comparing or serialising it gives nothing away.

    ``origin`` is scheme, host and port. :meth:`reveal` is the only way to the text, and refuses
    every other origin, so that a changed ``api_base`` or a redirect cannot carry the key along.

    >>> key = Secret("sk-very-secret-indeed", "https://api.openai.com")
    >>> key, f"{key}"
    (***, '***')
    >>> key.scrub("wrong key: sk-very-secret-indeed")
    'wrong key: ***'
    """

    __slots__ = ("_bytes", "_origin", "_value")

    def __init__(self, value: str, origin: str) -> None:
        if not value.isascii() or not value.isprintable():
            raise LMConfigurationError("the API key contains characters that no header can carry")
        self._value = value
        self._bytes = value.encode()  # looked for in everything that is received
        self._origin = origin
        if len(value) >= _SECRET:
            _known.add(value)

    @property
    def origin(self) -> str:
        """Where the key may be sent."""
        return self._origin

    def reveal(self, origin: str) -> str:
        """The key's text, for a request to ``origin``.

        Raises:
            LMConfigurationError: the key belongs elsewhere.
        """
        if origin != self._origin:
            raise LMConfigurationError(
                f"the API key was given for {self._origin} and is not sent to {origin}; "
                "pass the api_key that belongs to this api_base"
            )
        return self._value

    def scrub(self, text: str) -> str:
        """``text`` with the key masked, for servers that repeat what they were sent.

        A value of fewer than 16 characters is no secret but a dummy, such as the ``EMPTY`` that local
        servers are given; masking it would eat words out of answers.
        """
        return text.replace(self._value, _HIDDEN) if len(self._value) >= _SECRET else text

    def scrub_bytes(self, data: bytes) -> bytes:
        """The same for bytes; returns ``data`` itself where the key is not in it."""
        value = self._bytes
        return data.replace(value, _HIDDEN.encode()) if value in data and len(value) >= _SECRET else data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._origin == other._origin and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _HIDDEN

    def __format__(self, spec: str) -> str:
        return _HIDDEN

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never written down; name the key through an environment variable")
