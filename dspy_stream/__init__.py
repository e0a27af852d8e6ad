"""dspy_stream: language-model programs as fault-tolerant dataflows.

>>> import dspy_stream as ds
>>> ds.Signature("question -> answer").signature
'question -> answer'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from dspy_stream import paths

__version__ = "0.1.0"

# Name -> the module that defines it. Imported on first use, so that `import dspy_stream` costs
# nothing: no HTTP client, no engine, no database.
_EXPORTS: Final[dict[str, str]] = {
    "Adapter": "adapters",
    "AdapterParseError": "errors",
    "Audio": "program.types",
    "BAMLAdapter": "adapters",
    "Backend": "lm",
    "BaseCallback": "callbacks",
    "BaseLM": "lm",
    "BaseModule": "modules.module",
    "BatchOptions": "lm.batch",
    "BestOfN": "modules",
    "BreakerPolicy": "lm",
    "Budget": "lm.budget",
    "BudgetExceeded": "errors",
    "Capabilities": "lm",
    "ChainOfThought": "modules",
    "ChatAdapter": "adapters",
    "Citations": "program.types",
    "Code": "program.types",
    "CodeAct": "modules",
    "CodeExecutionError": "interpreters",
    "CodeInterpreter": "interpreters",
    "CodeInterpreterError": "interpreters",
    "Completions": "program",
    "ConfigurationError": "errors",
    "ContextWindowExceededError": "errors",
    "DSPyAdapter": "interop",
    "DSPyError": "foreign_errors",
    "DSPyModule": "interop",
    "DSPyStreamError": "errors",
    "Document": "program.types",
    "DummyLM": "lm",
    "Embedder": "modules",
    "Embeddings": "modules",
    "EmbeddingsWithScores": "modules",
    "Ensemble": "modules",
    "Estimate": "stream.estimate",
    "Example": "program",
    "File": "program.types",
    "FinalOutput": "interpreters",
    "Flow": "stream",
    "Fork": "modules.fork",
    "Format": "modules",
    "History": "program.types",
    "Image": "program.types",
    "InputField": "program",
    "Intensity": "modules.supervisor",
    "JSONAdapter": "adapters",
    "KNN": "modules",
    "LM": "lm",
    "LMAuthError": "errors",
    "LMBillingError": "errors",
    "LMCollectionLimitError": "foreign_errors",
    "LMConfigurationError": "errors",
    "LMError": "errors",
    "LMInvalidRequestError": "errors",
    "LMLockTimeoutError": "foreign_errors",
    "LMNotConfiguredError": "errors",
    "LMProviderError": "errors",
    "LMRateLimitError": "errors",
    "LMServerError": "errors",
    "LMStreamAssemblyError": "foreign_errors",
    "LMTimeoutError": "errors",
    "LMTransportError": "errors",
    "LMUnexpectedError": "foreign_errors",
    "LMUnsupportedFeatureError": "foreign_errors",
    "LMUnsupportedModelError": "errors",
    "Limits": "lm.limit",
    "LocalLM": "lm",
    "Loop": "modules.route",
    "MCPClient": "modules",
    "MCPConnectionError": "modules",
    "Module": "modules",
    "MultiChainComparison": "modules",
    "NoSubmission": "modules.react_v2",
    "OpenTimeout": "modules.opening",
    "OutputField": "program",
    "Parallel": "modules",
    "ParallelFailed": "modules.parallel",
    "Parameters": "program",
    "Part": "modules.part",
    "PartOptions": "modules.part",
    "Pipeline": "modules.compose",
    "Predict": "modules",
    "Prediction": "program",
    "PredictorParameters": "program",
    "Price": "lm",
    "Program": "modules.compose",
    "ProgramOfThought": "modules",
    "Provider": "lm",
    "PythonInterpreter": "interpreters",
    "RLM": "modules",
    "ReAct": "modules",
    "ReActV2": "modules",
    "Reasoning": "program.types",
    "Recorded": "modules.recorded",
    "Refine": "modules",
    "Report": "stream",
    "RestartsExceeded": "modules.supervisor",
    "Retrieve": "modules",
    "Route": "modules.route",
    "Row": "rows",
    "Sandbox": "interpreters",
    "SandboxLimits": "interpreters",
    "ScriptedInterpreter": "interpreters",
    "ScriptedLM": "lm",
    "Signature": "program",
    "SignatureMeta": "program",
    "StatusMessage": "modules.streaming",
    "StatusMessageProvider": "modules.streaming",
    "Stream": "stream",
    "StreamChunk": "modules.streaming",
    "StreamListener": "modules.streaming",
    "StreamResponse": "modules.streaming",
    "Supervised": "modules.supervision",
    "ThreadsExhausted": "modules.threads",
    "Tool": "program.types",
    "ToolCall": "program.types",
    "ToolCallResult": "program.types",
    "ToolCallResults": "program.types",
    "ToolCalls": "program.types",
    "Traced": "modules.traced",
    "TwoStepAdapter": "adapters",
    "Type": "program.types",
    "Untraceable": "modules.trace",
    "XMLAdapter": "adapters",
    "apply_sync_streaming": "modules.streaming",
    "asyncify": "modules.asyncify",
    "cache": "modules.caching",
    "configure": "configuration",
    "configure_cache": "modules.caching",
    "configure_dspy_loggers": "logs",
    "context": "configuration",
    "disable_logging": "logs",
    "enable_logging": "logs",
    "ensure_signature": "program",
    "infer_prefix": "program",
    "inspect_history": "history",
    "is_retryable_lm_error": "foreign_errors",
    "load": "modules.saving",
    "load_examples": "examples",
    "majority": "modules.majority",
    "make_signature": "program",
    "open_journal": "state",
    "per_label": "examples",
    "register_provider": "lm",
    "settings": "configuration",
    "streamify": "modules.streaming",
    "streaming_response": "modules.streaming",
    "syncify": "modules.asyncify",
    "trace": "modules.trace",
    "track_usage": "usage",
}

__all__ = ["__version__", *_EXPORTS]

paths.install()


def __getattr__(name: str) -> Any:
    home = _EXPORTS.get(name)
    if home is None and name in paths.BRANCHES:  # named without being imported
        return importlib.import_module(f"dspy_stream.{name}")
    if home is None:
        raise AttributeError(f"module 'dspy_stream' has no attribute {name!r}{paths.absent(name)}")
    if home == "configuration":
        importlib.import_module("dspy_stream.lm")  # which refuses what is no model
    value = getattr(importlib.import_module(f"dspy_stream.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *paths.BRANCHES})


if TYPE_CHECKING:
    from dspy_stream.adapters import Adapter as Adapter
    from dspy_stream.adapters import BAMLAdapter as BAMLAdapter
    from dspy_stream.adapters import ChatAdapter as ChatAdapter
    from dspy_stream.adapters import JSONAdapter as JSONAdapter
    from dspy_stream.adapters import TwoStepAdapter as TwoStepAdapter
    from dspy_stream.adapters import XMLAdapter as XMLAdapter
    from dspy_stream.callbacks import BaseCallback as BaseCallback
    from dspy_stream.configuration import configure as configure
    from dspy_stream.configuration import context as context
    from dspy_stream.configuration import settings as settings
    from dspy_stream.errors import AdapterParseError as AdapterParseError
    from dspy_stream.errors import BudgetExceeded as BudgetExceeded
    from dspy_stream.errors import ConfigurationError as ConfigurationError
    from dspy_stream.errors import ContextWindowExceededError as ContextWindowExceededError
    from dspy_stream.errors import DSPyStreamError as DSPyStreamError
    from dspy_stream.errors import LMAuthError as LMAuthError
    from dspy_stream.errors import LMBillingError as LMBillingError
    from dspy_stream.errors import LMConfigurationError as LMConfigurationError
    from dspy_stream.errors import LMError as LMError
    from dspy_stream.errors import LMInvalidRequestError as LMInvalidRequestError
    from dspy_stream.errors import LMNotConfiguredError as LMNotConfiguredError
    from dspy_stream.errors import LMProviderError as LMProviderError
    from dspy_stream.errors import LMRateLimitError as LMRateLimitError
    from dspy_stream.errors import LMServerError as LMServerError
    from dspy_stream.errors import LMTimeoutError as LMTimeoutError
    from dspy_stream.errors import LMTransportError as LMTransportError
    from dspy_stream.errors import LMUnsupportedModelError as LMUnsupportedModelError
    from dspy_stream.examples import load_examples as load_examples
    from dspy_stream.examples import per_label as per_label
    from dspy_stream.foreign_errors import DSPyError as DSPyError
    from dspy_stream.foreign_errors import LMCollectionLimitError as LMCollectionLimitError
    from dspy_stream.foreign_errors import LMLockTimeoutError as LMLockTimeoutError
    from dspy_stream.foreign_errors import LMStreamAssemblyError as LMStreamAssemblyError
    from dspy_stream.foreign_errors import LMUnexpectedError as LMUnexpectedError
    from dspy_stream.foreign_errors import LMUnsupportedFeatureError as LMUnsupportedFeatureError
    from dspy_stream.foreign_errors import is_retryable_lm_error as is_retryable_lm_error
    from dspy_stream.history import inspect_history as inspect_history
    from dspy_stream.interop import DSPyAdapter as DSPyAdapter
    from dspy_stream.interop import DSPyModule as DSPyModule
    from dspy_stream.interpreters import CodeExecutionError as CodeExecutionError
    from dspy_stream.interpreters import CodeInterpreter as CodeInterpreter
    from dspy_stream.interpreters import CodeInterpreterError as CodeInterpreterError
    from dspy_stream.interpreters import FinalOutput as FinalOutput
    from dspy_stream.interpreters import PythonInterpreter as PythonInterpreter
    from dspy_stream.interpreters import Sandbox as Sandbox
    from dspy_stream.interpreters import SandboxLimits as SandboxLimits
    from dspy_stream.interpreters import ScriptedInterpreter as ScriptedInterpreter
    from dspy_stream.lm import LM as LM
    from dspy_stream.lm import Backend as Backend
    from dspy_stream.lm import BaseLM as BaseLM
    from dspy_stream.lm import BreakerPolicy as BreakerPolicy
    from dspy_stream.lm import Capabilities as Capabilities
    from dspy_stream.lm import DummyLM as DummyLM
    from dspy_stream.lm import LocalLM as LocalLM
    from dspy_stream.lm import Price as Price
    from dspy_stream.lm import Provider as Provider
    from dspy_stream.lm import ScriptedLM as ScriptedLM
    from dspy_stream.lm import register_provider as register_provider
    from dspy_stream.lm.batch import BatchOptions as BatchOptions
    from dspy_stream.lm.budget import Budget as Budget
    from dspy_stream.lm.limit import Limits as Limits
    from dspy_stream.logs import configure_dspy_loggers as configure_dspy_loggers
    from dspy_stream.logs import disable_logging as disable_logging
    from dspy_stream.logs import enable_logging as enable_logging
    from dspy_stream.modules import KNN as KNN
    from dspy_stream.modules import RLM as RLM
    from dspy_stream.modules import BestOfN as BestOfN
    from dspy_stream.modules import ChainOfThought as ChainOfThought
    from dspy_stream.modules import CodeAct as CodeAct
    from dspy_stream.modules import Embedder as Embedder
    from dspy_stream.modules import Embeddings as Embeddings
    from dspy_stream.modules import EmbeddingsWithScores as EmbeddingsWithScores
    from dspy_stream.modules import Ensemble as Ensemble
    from dspy_stream.modules import Format as Format
    from dspy_stream.modules import MCPClient as MCPClient
    from dspy_stream.modules import MCPConnectionError as MCPConnectionError
    from dspy_stream.modules import Module as Module
    from dspy_stream.modules import MultiChainComparison as MultiChainComparison
    from dspy_stream.modules import Parallel as Parallel
    from dspy_stream.modules import Predict as Predict
    from dspy_stream.modules import ProgramOfThought as ProgramOfThought
    from dspy_stream.modules import ReAct as ReAct
    from dspy_stream.modules import ReActV2 as ReActV2
    from dspy_stream.modules import Refine as Refine
    from dspy_stream.modules import Retrieve as Retrieve
    from dspy_stream.modules.asyncify import asyncify as asyncify
    from dspy_stream.modules.asyncify import syncify as syncify
    from dspy_stream.modules.caching import cache as cache
    from dspy_stream.modules.caching import configure_cache as configure_cache
    from dspy_stream.modules.compose import Pipeline as Pipeline
    from dspy_stream.modules.compose import Program as Program
    from dspy_stream.modules.fork import Fork as Fork
    from dspy_stream.modules.majority import majority as majority
    from dspy_stream.modules.module import BaseModule as BaseModule
    from dspy_stream.modules.opening import OpenTimeout as OpenTimeout
    from dspy_stream.modules.parallel import ParallelFailed as ParallelFailed
    from dspy_stream.modules.part import Part as Part
    from dspy_stream.modules.part import PartOptions as PartOptions
    from dspy_stream.modules.react_v2 import NoSubmission as NoSubmission
    from dspy_stream.modules.recorded import Recorded as Recorded
    from dspy_stream.modules.route import Loop as Loop
    from dspy_stream.modules.route import Route as Route
    from dspy_stream.modules.saving import load as load
    from dspy_stream.modules.streaming import StatusMessage as StatusMessage
    from dspy_stream.modules.streaming import StatusMessageProvider as StatusMessageProvider
    from dspy_stream.modules.streaming import StreamChunk as StreamChunk
    from dspy_stream.modules.streaming import StreamListener as StreamListener
    from dspy_stream.modules.streaming import StreamResponse as StreamResponse
    from dspy_stream.modules.streaming import apply_sync_streaming as apply_sync_streaming
    from dspy_stream.modules.streaming import streamify as streamify
    from dspy_stream.modules.streaming import streaming_response as streaming_response
    from dspy_stream.modules.supervision import Supervised as Supervised
    from dspy_stream.modules.supervisor import Intensity as Intensity
    from dspy_stream.modules.supervisor import RestartsExceeded as RestartsExceeded
    from dspy_stream.modules.threads import ThreadsExhausted as ThreadsExhausted
    from dspy_stream.modules.trace import Untraceable as Untraceable
    from dspy_stream.modules.trace import trace as trace
    from dspy_stream.modules.traced import Traced as Traced
    from dspy_stream.program import Completions as Completions
    from dspy_stream.program import Example as Example
    from dspy_stream.program import InputField as InputField
    from dspy_stream.program import OutputField as OutputField
    from dspy_stream.program import Parameters as Parameters
    from dspy_stream.program import Prediction as Prediction
    from dspy_stream.program import PredictorParameters as PredictorParameters
    from dspy_stream.program import Signature as Signature
    from dspy_stream.program import SignatureMeta as SignatureMeta
    from dspy_stream.program import ensure_signature as ensure_signature
    from dspy_stream.program import infer_prefix as infer_prefix
    from dspy_stream.program import make_signature as make_signature
    from dspy_stream.program.types import Audio as Audio
    from dspy_stream.program.types import Citations as Citations
    from dspy_stream.program.types import Code as Code
    from dspy_stream.program.types import Document as Document
    from dspy_stream.program.types import File as File
    from dspy_stream.program.types import History as History
    from dspy_stream.program.types import Image as Image
    from dspy_stream.program.types import Reasoning as Reasoning
    from dspy_stream.program.types import Tool as Tool
    from dspy_stream.program.types import ToolCall as ToolCall
    from dspy_stream.program.types import ToolCallResult as ToolCallResult
    from dspy_stream.program.types import ToolCallResults as ToolCallResults
    from dspy_stream.program.types import ToolCalls as ToolCalls
    from dspy_stream.program.types import Type as Type
    from dspy_stream.rows import Row as Row
    from dspy_stream.state import open_journal as open_journal
    from dspy_stream.stream import Flow as Flow
    from dspy_stream.stream import Report as Report
    from dspy_stream.stream import Stream as Stream
    from dspy_stream.stream.estimate import Estimate as Estimate
    from dspy_stream.usage import track_usage as track_usage
