"""What a call costs: list prices as dated data, and a lookup that costs nothing itself.

The prices that come with the package are in ``prices.json``, each provider's with the month in
which they were looked up. They are list prices of the standard tier; what an account has agreed on
goes into ``configure(prices=...)``, ``LM(prices=...)`` or ``--prices FILE``. A model that nobody
has a price for costs an unknown amount, which is not nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final, Union

import orjson

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError

__all__ = ["PRICES", "Price", "PriceSource", "load_prices", "price_of"]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens.

    Args:
        prompt: tokens of the prompt.
        completion: tokens of the answer, those of hidden reasoning included.
        cached: tokens of the prompt that the provider had in its cache; None costs as ``prompt``.
        written: tokens of the prompt that it was told to keep there; None costs as ``prompt``.
        batch: what a call through the provider's batch interface costs, as a part of this.
        above: above so many tokens of prompt, the whole call is charged as ``long`` says.
        long: the price of such a call.
        as_of: when the price was looked up.

    >>> Price(2.5, 10.0, 1.25).of(1000, 100)
    0.0035
    >>> Price(2.5, 10.0, batch=0.5).of(1000, 100, batch=True)
    0.00175
    """

    prompt: float
    completion: float
    cached: float | None = None
    written: float | None = None
    batch: float = 1.0
    above: int | None = None
    long: Price | None = None
    as_of: str = ""

    def of(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        written_tokens: int = 0,
        *,
        batch: bool = False,
    ) -> float:
        """Cost of one call; ``cached_tokens`` and ``written_tokens`` are parts of the prompt."""
        factor = self.batch if batch else 1.0
        if self.long is not None and self.above is not None and prompt_tokens > self.above:
            return factor * self.long.of(prompt_tokens, completion_tokens, cached_tokens, written_tokens)
        cached = min(cached_tokens, prompt_tokens) if self.cached is not None else 0
        written = min(written_tokens, prompt_tokens - cached) if self.written is not None else 0
        millionths = (
            (prompt_tokens - cached - written) * self.prompt
            + cached * (self.cached or 0.0)
            + written * (self.written or 0.0)
            + completion_tokens * self.completion
        )
        return millionths * factor / 1_000_000


PriceSource = Union[Mapping[str, Price], Callable[[str], "Price | None"]]  # noqa: UP007

_FREE: Final = Price(0.0, 0.0)
# Models in process: there is nobody to pay.
_IN_PROCESS: Final = ("local/", "scripted/")
# The date or number with which a provider names one state of a model, and its word for the newest.
_SNAPSHOT: Final = re.compile(
    r"[-@:](?:20\d{2}-\d{2}-\d{2}|20\d{6}|\d{4}|00\d|latest|preview-\d{2}-(?:20)?\d{2})$"
)
_LARGEST_FILE: Final = 4_000_000
_NUMBERS: Final = ("prompt", "completion", "cached", "written", "batch", "above")


def price_of(model: str, prices: PriceSource | None = None) -> Price | None:
    """The price of ``provider/name``; None where it is not known, which is not the same as free.

    ``prices`` is asked first, then the setting of that name, then the package's own table; each by
    the full name, without the date of a snapshot, and without the format in ``openai/responses/name``.

    >>> price_of("openai/gpt-4o-mini").prompt
    0.15
    >>> price_of("openai/gpt-4o-mini-2024-07-18") == price_of("openai/gpt-4o-mini")
    True
    >>> price_of("openai/private", {"openai/private": Price(1.0, 2.0)}).completion
    2.0
    """
    plain = model.replace("/responses/", "/", 1)
    names = dict.fromkeys(each for name in (model, plain) for each in (name, _SNAPSHOT.sub("", name)))
    for source in (prices, settings.prices, PRICES):
        for name in names:
            found = source(name) if callable(source) else source.get(name) if source is not None else None
            if found is not None:
                return found
    return _FREE if model.startswith(_IN_PROCESS) else None


def load_prices(path: str | Path) -> dict[str, Price]:
    """Prices from a JSON file, by full model name.

    The file holds ``{"openai/my-model": {"prompt": 1.0, "completion": 2.0}, ...}`` in US dollars for
    a million tokens, with any of the other fields of :class:`Price`.

    Raises:
        ConfigurationError: the file cannot be read, or something in it is no price; says where.
    """
    where = Path(path)
    try:
        if where.stat().st_size > _LARGEST_FILE:
            raise ConfigurationError(f"{where}: larger than {_LARGEST_FILE // 1_000_000} MB; is it prices?")
        value = orjson.loads(where.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the prices {where}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"the prices {where} are not JSON: {error}") from None
    return read_prices(value, str(where))


def read_prices(value: Any, where: str, as_of: str = "") -> dict[str, Price]:
    """Prices from their JSON form, checked.

    Raises:
        ConfigurationError: something in it is no price.
    """
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: prices are an object of models by name")
    return {str(name): _price(price, f"{where}: {name}", as_of) for name, price in value.items()}


def _price(value: Any, where: str, as_of: str) -> Price:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: a price looks like {{'prompt': 1.0, 'completion': 2.0}}")
    if unknown := sorted(set(value) - {*_NUMBERS, "long", "as_of"}):
        known = ", ".join((*_NUMBERS, "long", "as_of"))
        raise ConfigurationError(f"{where}: a price has no {unknown[0]!r}; it has: {known}")
    for name in ("prompt", "completion"):
        if name not in value:
            raise ConfigurationError(f"{where}: {name!r} is missing")
    for name in _NUMBERS:
        number: Any = value.get(name)
        if number is None and name not in ("prompt", "completion"):
            continue
        if type(number) not in (int, float) or not math.isfinite(number) or number < 0:
            raise ConfigurationError(f"{where}: {name} is {number!r}; it must be a number, zero or more")
    if (value.get("above") is None) != (value.get("long") is None):
        raise ConfigurationError(f"{where}: 'above' and 'long' belong together")
    given = {name: value[name] for name in _NUMBERS if value.get(name) is not None}
    if value.get("long") is not None:
        given["long"] = _price(value["long"], f"{where}, long", as_of)
    return Price(**given, as_of=str(value.get("as_of", as_of)))


class _Table(Mapping[str, Price]):
    """The package's own prices, read when the first one is looked up."""

    def __getitem__(self, name: str) -> Price:
        return _shipped()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_shipped())

    def __len__(self) -> int:
        return len(_shipped())


PRICES: Final[Mapping[str, Price]] = _Table()


@cache
def _shipped() -> Mapping[str, Price]:
    data = orjson.loads(Path(__file__).with_name("prices.json").read_bytes())
    return shipped_prices(data, date.today().isoformat())


def shipped_prices(data: Mapping[str, Any], today: str) -> dict[str, Price]:
    """The table in force on a day (ISO 8601): announced changes are in the data beside what they change."""
    made: dict[str, Price] = {}
    for provider, group in data["providers"].items():
        prices = dict(group["models"])
        for day, changed in sorted(group.get("from", {}).items()):
            if day <= today:
                prices.update(changed)
        for name, price in prices.items():
            full = {"batch": group.get("batch", 1.0), **price}
            made[f"{provider}/{name}"] = _price(full, f"prices.json: {provider}/{name}", group["as_of"])
    return made
