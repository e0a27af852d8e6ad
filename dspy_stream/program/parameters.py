"""The learnable part of a program as a value apart from it.

A row runs under a set of parameters; the module itself is never changed to try another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.example import Example
from dspy_stream.program.fields import nearest
from dspy_stream.program.jsonable import canonical, to_jsonable

__all__ = ["Parameters", "PredictorParameters"]

_SECRETS: Final = frozenset({"api_key", "api_token", "access_token", "authorization", "password", "secret"})
_KEYS: Final = ("instructions", "demos", "config", "lm")


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class PredictorParameters:
    """What may be learnt about one predictor.

    Everything is copied to plain JSON data when the value is made, so that nothing outside can
    change it later; :func:`~dspy_stream.program.jsonable.to_jsonable` says how. Two are equal when
    their JSON is.

    Args:
        instructions: in place of the signature's; None leaves those.
        demos: examples shown to the model, in order: mappings or examples.
        config: settings of the model call, such as ``temperature``.
        lm: the model, as saved settings; None for whatever is configured. Never a key.

    Raises:
        ConfigurationError: a value has no JSON form, or is of the wrong kind, or is a secret.

    >>> PredictorParameters.of(demos=[Example(question="2+2?", answer="4")]).to_json()["demos"]
    [{'question': '2+2?', 'answer': '4'}]
    """

    instructions: str | None = None
    demos: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    lm: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.instructions, (str, type(None))):
            raise ConfigurationError(f"instructions are text or None, not {type(self.instructions).__name__}")
        if isinstance(self.demos, (str, bytes, Mapping)) or not isinstance(self.demos, Iterable):
            raise ConfigurationError(f"demos are a list of mappings, not {type(self.demos).__name__}")
        demos = tuple(_object(demo, f"demo {number}") for number, demo in enumerate(self.demos, 1))
        object.__setattr__(self, "demos", demos)
        object.__setattr__(self, "config", _settings(self.config, "config"))
        if self.lm is not None:
            object.__setattr__(self, "lm", _settings(self.lm, "lm"))

    def to_json(self) -> dict[str, Any]:
        """All four parts as JSON data; a new copy each time."""
        parts = {"instructions": self.instructions, "demos": self.demos, "config": self.config, "lm": self.lm}
        copied: dict[str, Any] = to_jsonable(parts)
        return copied

    @staticmethod
    def of(
        *,
        instructions: str | None = None,
        demos: Iterable[Mapping[str, Any] | Example] = (),
        config: Mapping[str, Any] | None = None,
        lm: Mapping[str, Any] | None = None,
    ) -> PredictorParameters:
        """The same from examples, and with None for an empty ``config``."""
        plain = tuple(_object(demo, f"demo {number}") for number, demo in enumerate(demos, 1))
        return PredictorParameters(instructions, plain, config if config is not None else {}, lm)

    @staticmethod
    def from_json(value: Any, where: str = "predictor parameters") -> PredictorParameters:
        """Read what :meth:`to_json` gives; absent keys have their defaults.

        Raises:
            ConfigurationError: an unknown key, or a value of the wrong kind.
        """
        _closed(value, _KEYS, where)
        try:
            return PredictorParameters(**{**value, "config": value.get("config", {})})
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error

    def digest(self) -> str:
        """64 hex digits that name the value; the same in every process."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PredictorParameters):
            return NotImplemented
        return canonical(self.to_json()) == canonical(other.to_json())

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        model = self.lm.get("model") if self.lm is not None else None
        return (
            f"PredictorParameters(instructions={self.instructions!r}, demos=<{len(self.demos)}>, "
            f"config={self.config!r}, lm={model!r})"
        )


class Parameters(Mapping[str, PredictorParameters]):
    """Parameters of a whole program, by the names of its predictors, such as ``"answer.predict"``.

    A read-only mapping that keeps the order it is given; order does not count for equality or for
    the digest.

    >>> Parameters({"a": PredictorParameters("Be brief.")}).with_predictor("b", PredictorParameters())
    Parameters(a, b)
    """

    __slots__ = ("_predictors",)

    def __init__(self, predictors: Mapping[str, PredictorParameters] | None = None) -> None:
        self._predictors = dict(predictors or {})
        for name, value in self._predictors.items():
            if not isinstance(name, str) or not isinstance(value, PredictorParameters):
                raise ConfigurationError(
                    f"parameters map names to PredictorParameters, not {name!r} to {type(value).__name__}"
                )

    def __getitem__(self, name: str) -> PredictorParameters:
        return self._predictors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._predictors)

    def __len__(self) -> int:
        return len(self._predictors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameters):
            return NotImplemented
        return self._predictors == other._predictors

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Parameters({', '.join(self._predictors)})"

    def with_predictor(self, name: str, value: PredictorParameters) -> Parameters:
        """The same parameters with one predictor's replaced or added."""
        return Parameters({**self._predictors, name: value})

    def to_json(self) -> dict[str, Any]:
        """``{"predictors": {name: ...}}`` as JSON data."""
        return {"predictors": {name: value.to_json() for name, value in self._predictors.items()}}

    @staticmethod
    def from_json(value: Any) -> Parameters:
        """Read what :meth:`to_json` gives.

        Raises:
            ConfigurationError: an unknown key, or a value of the wrong kind; it is named.

        >>> Parameters.from_json({"predictor": {}})
        Traceback (most recent call last):
            ...
        dspy_stream.errors.ConfigurationError: parameters: unknown key 'predictor'; did you mean 'predictors'?
        """
        _closed(value, ("predictors",), "parameters")
        predictors = value.get("predictors", {})
        if not isinstance(predictors, Mapping):
            raise ConfigurationError(
                f"parameters: `predictors` is an object, not {type(predictors).__name__}"
            )
        return Parameters(
            {
                name: PredictorParameters.from_json(each, f"predictor {name!r}")
                for name, each in predictors.items()
            }
        )

    def digest(self) -> str:
        """64 hex digits that name the value; the same in every process."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()


def _closed(value: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: an object is expected, not {type(value).__name__}")
    for key in value:
        if key not in known:
            hint = nearest(str(key), known) or f"; known are {', '.join(known)}"
            raise ConfigurationError(f"{where}: unknown key {key!r}{hint}")


def _object(value: Any, where: str) -> dict[str, Any]:
    converted = to_jsonable(value, where)
    if not isinstance(converted, dict):
        raise ConfigurationError(f"{where} is a mapping, not {type(value).__name__}")
    return converted


def _settings(value: Any, where: str) -> dict[str, Any]:
    settings = _object(value, where)
    for key in settings:
        if key.lower() in _SECRETS:
            raise ConfigurationError(
                f"{where} has {key!r}: secrets do not belong in a program; use the environment"
            )
    return settings
