"""Where a request goes: the address of a server, checked and taken apart without an HTTP library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from dspy_stream.errors import LMConfigurationError

__all__ = ["Address", "parse", "parse_base", "proxy_for", "saved"]

# Narrower than the standards on purpose: two parsers must never disagree about the host.
_URL: Final = re.compile(
    r"(https?)://((?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?(/[!-~]*|\?[!-~]*)?"
)
# All of a query that may be written down: the rest may be a key.
_OPEN: Final = re.compile(r"api-version=[A-Za-z0-9_.-]+")
_USUAL: Final = {"http": 80, "https": 443}
# What the formats add to an address.
_ADDED: Final = re.compile(r"/(chat/completions|completions|responses|messages|embeddings)/?(\?|\Z)")


@dataclass(frozen=True, slots=True)
class Address:
    """A server's URL and its parts. ``origin`` is scheme, host and port, without a usual port."""

    url: str
    origin: str
    host: str

    @property
    def is_loopback(self) -> bool:
        """True where the server is on this machine."""
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    def join(self, path: str) -> str:
        """The URL with ``path`` added before its query; a query in ``path`` goes before the URL's own."""
        base, _, query = self.url.partition("?")
        path, _, first = path.partition("?")
        queries = "&".join([each for each in (first, query) if each])
        return base.rstrip("/") + path + (f"?{queries}" if queries else "")


def parse(url: str) -> Address:
    """Check a server's address.

    Raises:
        LMConfigurationError: not an ``http`` or ``https`` URL, or one with a user name or password.

    >>> parse("https://API.openai.com:443/v1").origin, parse("http://[::1]:8000/v1").is_loopback
    ('https://api.openai.com', True)
    """
    match = _URL.fullmatch(url)
    if match is None or "#" in url:
        # The URL itself is not shown: what is wrong with it may be a password.
        raise LMConfigurationError(
            "api_base must be a plain http or https URL such as https://host/v1, and without credentials"
        )
    scheme, host, port = match.group(1), match.group(2).lower(), match.group(3)
    if port is not None and not 0 < int(port) < 65536:
        raise LMConfigurationError(f"api_base names port {port}; ports end at 65535")
    if port is None or int(port) == _USUAL[scheme]:
        return Address(url, f"{scheme}://{host}", host)
    return Address(url, f"{scheme}://{host}:{int(port)}", host)


def parse_base(url: str, setting: str = "api_base") -> Address:
    """Check the address of a server's API, as the ``setting`` of that name has it.

    Raises:
        LMConfigurationError: as :func:`parse`, or it goes on to one of the API's endpoints.
    """
    address = parse(url)
    found = _ADDED.search(url)
    if found is not None:
        raise LMConfigurationError(
            f"{setting} ends in /{found.group(1)}, which is added to it: leave that out, as in https://host/v1"
        )
    return address


def saved(url: str) -> str:
    """An address as it may be written down: of its query only the version.

    >>> saved("https://host/v1?api-version=2&key=sk-secret")
    'https://host/v1?api-version=2'
    """
    plain, _, query = url.partition("?")
    kept = "&".join([part for part in query.split("&") if _OPEN.fullmatch(part)])
    return f"{plain}?{kept}" if kept else plain


def proxy_for(address: Address) -> str | None:
    """The proxy that the environment names for a server; None for this machine and where there is none."""
    if address.is_loopback:
        return None
    from urllib.request import getproxies, proxy_bypass  # much to import

    proxies = getproxies()
    proxy = proxies.get(address.url.partition(":")[0]) or proxies.get("all")
    if not proxy or proxy_bypass(address.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
