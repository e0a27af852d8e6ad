"""dspy_stream: language-model programs as fault-tolerant dataflows.

>>> import dspy_stream as ds
>>> ds.Signature("question -> answer").signature
'question -> answer'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

# Name -> the module that defines it. Imported on first use, so that `import dspy_stream` costs
# nothing: no HTTP client, no engine, no database.
_EXPORTS: Final[dict[str, str]] = {
    "Adapter": "adapters",
    "AdapterParseError": "errors",
    "ChainOfThought": "modules",
    "ChatAdapter": "adapters",
    "Completions": "program",
    "ConfigurationError": "errors",
    "ContextWindowExceededError": "errors",
    "DSPyStreamError": "errors",
    "Example": "program",
    "Flow": "stream",
    "InputField": "program",
    "JSONAdapter": "adapters",
    "LM": "lm",
    "LMError": "errors",
    "LocalLM": "lm",
    "Module": "modules",
    "OutputField": "program",
    "Parameters": "program",
    "Predict": "modules",
    "Prediction": "program",
    "PredictorParameters": "program",
    "Report": "stream",
    "Row": "rows",
    "ScriptedLM": "lm",
    "Signature": "program",
    "Stream": "stream",
    "configure": "configuration",
    "context": "configuration",
    "ensure_signature": "program",
    "infer_prefix": "program",
    "load_examples": "examples",
    "make_signature": "program",
    "open_journal": "state",
    "per_label": "examples",
    "settings": "configuration",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    home = _EXPORTS.get(name)
    if home is None:
        raise AttributeError(f"module 'dspy_stream' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dspy_stream.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


if TYPE_CHECKING:
    from dspy_stream.adapters import Adapter as Adapter
    from dspy_stream.adapters import ChatAdapter as ChatAdapter
    from dspy_stream.adapters import JSONAdapter as JSONAdapter
    from dspy_stream.configuration import configure as configure
    from dspy_stream.configuration import context as context
    from dspy_stream.configuration import settings as settings
    from dspy_stream.errors import AdapterParseError as AdapterParseError
    from dspy_stream.errors import ConfigurationError as ConfigurationError
    from dspy_stream.errors import ContextWindowExceededError as ContextWindowExceededError
    from dspy_stream.errors import DSPyStreamError as DSPyStreamError
    from dspy_stream.errors import LMError as LMError
    from dspy_stream.examples import load_examples as load_examples
    from dspy_stream.examples import per_label as per_label
    from dspy_stream.lm import LM as LM
    from dspy_stream.lm import LocalLM as LocalLM
    from dspy_stream.lm import ScriptedLM as ScriptedLM
    from dspy_stream.modules import ChainOfThought as ChainOfThought
    from dspy_stream.modules import Module as Module
    from dspy_stream.modules import Predict as Predict
    from dspy_stream.program import Completions as Completions
    from dspy_stream.program import Example as Example
    from dspy_stream.program import InputField as InputField
    from dspy_stream.program import OutputField as OutputField
    from dspy_stream.program import Parameters as Parameters
    from dspy_stream.program import Prediction as Prediction
    from dspy_stream.program import PredictorParameters as PredictorParameters
    from dspy_stream.program import Signature as Signature
    from dspy_stream.program import ensure_signature as ensure_signature
    from dspy_stream.program import infer_prefix as infer_prefix
    from dspy_stream.program import make_signature as make_signature
    from dspy_stream.rows import Row as Row
    from dspy_stream.state import open_journal as open_journal
    from dspy_stream.stream import Flow as Flow
    from dspy_stream.stream import Report as Report
    from dspy_stream.stream import Stream as Stream
