"""The module paths of DSPy, for programs that import from them: ``dspy_stream.utils.dummies`` and so on.

A path of the table is a module without code of its own: its names are those of ``dspy_stream``, or what
``_ELSEWHERE`` says. Nothing is imported before a name is used.

>>> from dspy_stream.adapters.types.image import Image
>>> Image.__module__
'dspy_stream.program.types.image'
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

__all__ = ["BRANCHES", "absent", "install", "member"]

_ROOT: Final = "dspy_stream"

# Path below the package -> its names. `adapters` is a package of ours, which has names of its own beside.
_HOMES: Final[dict[str, str]] = {
    "adapters": "Audio Code File History Image Reasoning Tool ToolCallResults ToolCalls Type",
    "adapters.baml_adapter": "BAMLAdapter",
    "adapters.chat_adapter": "ChatAdapter",
    "adapters.json_adapter": "JSONAdapter",
    "adapters.two_step_adapter": "TwoStepAdapter",
    "adapters.types": (
        "Audio Citations Code Document File History Image Reasoning Tool ToolCallResults ToolCalls Type"
    ),
    "adapters.types.audio": "Audio",
    "adapters.types.base_type": "Type",
    "adapters.types.citation": "Citations",
    "adapters.types.code": "Code",
    "adapters.types.document": "Document",
    "adapters.types.file": "File",
    "adapters.types.history": "History",
    "adapters.types.image": "Image",
    "adapters.types.reasoning": "Reasoning",
    "adapters.types.tool": "Tool ToolCall ToolCallResult ToolCallResults ToolCalls",
    "adapters.utils": (
        "format_field_value get_annotation_name get_field_description_string parse_value serialize_for_json"
    ),
    "adapters.xml_adapter": "XMLAdapter",
    "clients": "BaseLM Embedder LM Provider configure_cache inspect_history",
    "clients.base_lm": "BaseLM GLOBAL_HISTORY inspect_history",
    "clients.embedding": "Embedder",
    "clients.lm": "LM",
    "dsp": "",
    "dsp.utils": "deduplicate dotdict settings",
    "dsp.utils.settings": "settings",
    "dsp.utils.utils": "deduplicate dotdict",
    "experimental": "Citations Document",
    "predict": (
        "BestOfN ChainOfThought CodeAct KNN MultiChainComparison Parallel Predict ProgramOfThought RLM ReAct"
        " ReActV2 Refine Tool majority"
    ),
    "predict.aggregation": "default_normalize majority",
    "predict.best_of_n": "BestOfN",
    "predict.chain_of_thought": "ChainOfThought",
    "predict.code_act": "CodeAct",
    "predict.knn": "KNN",
    "predict.multi_chain_comparison": "MultiChainComparison",
    "predict.parallel": "Parallel",
    "predict.predict": "Predict",
    "predict.program_of_thought": "ProgramOfThought",
    "predict.react": "ReAct Tool",
    "predict.react_v2": "ReActV2",
    "predict.refine": "Refine",
    "predict.rlm": "RLM",
    "primitives": (
        "BaseModule CodeExecutionError CodeInterpreter CodeInterpreterError Completions Example FinalOutput"
        " Module Prediction PythonInterpreter"
    ),
    "primitives.base_module": "BaseModule",
    "primitives.code_interpreter": "CodeExecutionError CodeInterpreter CodeInterpreterError FinalOutput",
    "primitives.example": "Example",
    "primitives.module": "Module",
    "primitives.prediction": "Completions Prediction",
    "primitives.program": "Module",
    "primitives.python_interpreter": "CodeExecutionError CodeInterpreterError FinalOutput PythonInterpreter",
    "retrievers": "Embeddings EmbeddingsWithScores Retrieve",
    "retrievers.embeddings": "Embeddings EmbeddingsWithScores",
    "retrievers.retrieve": "Retrieve",
    "signatures": (
        "InputField OutputField Signature SignatureMeta ensure_signature infer_prefix make_signature"
    ),
    "signatures.field": "InputField OutputField",
    "signatures.signature": (
        "InputField OutputField Signature SignatureMeta ensure_signature infer_prefix make_signature"
    ),
    "signatures.utils": "get_dspy_field_type",
    "streaming": (
        "StatusMessage StatusMessageProvider StreamListener StreamResponse apply_sync_streaming streamify"
        " streaming_response"
    ),
    "streaming.messages": "StatusMessage StatusMessageProvider StreamResponse",
    "streaming.streamify": "apply_sync_streaming streamify streaming_response",
    "streaming.streaming_listener": "StreamListener",
    "utils": (
        "BaseCallback DummyLM DummyVectorizer StatusMessage StatusMessageProvider dummy_rm"
        " pretty_print_history syncify with_callbacks"
    ),
    "utils.asyncify": "asyncify",
    "utils.callback": "ACTIVE_CALL_ID BaseCallback with_callbacks",
    "utils.dummies": "DummyLM DummyVectorizer dummy_rm",
    "utils.exceptions": (
        "AdapterParseError ContextWindowExceededError DSPyError LMAuthError LMBillingError"
        " LMCollectionLimitError LMConfigurationError LMError LMInvalidRequestError LMLockTimeoutError"
        " LMNotConfiguredError LMProviderError LMRateLimitError LMServerError LMStreamAssemblyError"
        " LMTimeoutError LMTransportError LMUnexpectedError LMUnsupportedFeatureError"
        " LMUnsupportedModelError is_retryable_lm_error"
    ),
    "utils.inspect_history": "pretty_print_history",
    "utils.langchain_tool": "convert_langchain_tool",
    "utils.logging_utils": "configure_dspy_loggers disable_logging enable_logging",
    "utils.mcp": "convert_mcp_tool",
    "utils.parallelizer": "ParallelExecutor",
    "utils.saving": "load",
    "utils.syncify": "syncify",
    "utils.usage_tracker": "UsageTracker track_usage",
}

# Names that the package itself does not export -> the module that has them, and what they are called there.
_ELSEWHERE: Final[dict[str, tuple[str, str]]] = {
    "ACTIVE_CALL_ID": ("events", "ACTIVE_CALL_ID"),
    "DummyVectorizer": ("modules.dummies", "DummyVectorizer"),
    "GLOBAL_HISTORY": ("history", "GLOBAL_HISTORY"),
    "ParallelExecutor": ("modules.executor", "ParallelExecutor"),
    "UsageTracker": ("usage", "UsageTracker"),
    "convert_langchain_tool": ("program.types", "Tool.from_langchain"),
    "convert_mcp_tool": ("program.types", "Tool.from_mcp_tool"),
    "deduplicate": ("modules.retrieve", "deduplicate"),
    "default_normalize": ("modules.majority", "default_normalize"),
    "dotdict": ("dotted", "Dotted"),
    "dummy_rm": ("modules.dummies", "dummy_rm"),
    "get_dspy_field_type": ("program.fields", "direction_of"),
    "format_field_value": ("adapters.fieldwise", "format_field_value"),
    "get_annotation_name": ("adapters.fieldwise", "get_annotation_name"),
    "get_field_description_string": ("adapters.fieldwise", "get_field_description_string"),
    "parse_value": ("adapters.fieldwise", "parse_value"),
    "serialize_for_json": ("adapters.fieldwise", "serialize_for_json"),
    "pretty_print_history": ("history", "print_history"),
    "with_callbacks": ("modules.calls", "with_callbacks"),
}

BRANCHES: Final = tuple(path for path in _HOMES if "." not in path)

_OPTIMIZERS: Final = "it has no optimizers yet"
_EVALUATION: Final = "it has no evaluation yet; call the metric yourself, or measure a flow"
_CACHE: Final = "configure_cache(...) and configure(journal=...) say what is kept, and where"
_ENGINE: Final = "a model of your own subclasses BaseLM, and a provider is declared with register_provider"
_RETRIEVER: Final = "configure(rm=...) takes any function of a query and k that asks a server"
_INTERPRETER: Final = "its PythonInterpreter runs a process of its own, see its description"

# What DSPy has and this package has not -> what to say to somebody who asks for it.
_ABSENT: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            *("AvatarOptimizer", "BetterTogether", "BootstrapFewShot", "BootstrapFewShotWithOptuna"),
            *("BootstrapFewShotWithRandomSearch", "BootstrapFinetune", "BootstrapRS", "COPRO", "GEPA"),
            *("InferRules", "KNNFewShot", "LabeledFewShot", "MIPROv2", "SIMBA", "bootstrap_trace_data"),
            *("propose", "teleprompt"),
        ),
        _OPTIMIZERS,
    ),
    **dict.fromkeys(("Evaluate", "evaluate"), _EVALUATION),
    **dict.fromkeys(("Choice", "Noul", "ReAnchor", "Score", "TypeSafe"), "decision types are not part of it"),
    **dict.fromkeys(("OldField", "OldInputField", "OldOutputField"), "declare InputField or OutputField"),
    **dict.fromkeys(("Cache", "clients.cache"), _CACHE),
    **dict.fromkeys(("ColBERTv2", "DatabricksRM", "WeaviateRM", "colbertv2"), _RETRIEVER),
    **dict.fromkeys(("databricks_rm", "weaviate_rm"), _RETRIEVER),
    **dict.fromkeys(("Flex", "flex"), "write the module's forward yourself"),
    **dict.fromkeys(("LocalInterpreter", "SandboxSerializable", "local_interpreter"), _INTERPRETER),
    **dict.fromkeys(("resolve_interpreter_factory", "sandbox_serializable"), _INTERPRETER),
    **dict.fromkeys(("TrainingJob", "clients.provider"), "fine-tuning is not part of it"),
    "datasets": "Stream.read reads files and Hugging Face data sets, load_examples reads examples",
    "disable_litellm_logging": "LiteLLM is not used here",
    "enable_litellm_logging": "LiteLLM is not used here",
    **dict.fromkeys(("engines", "lm15"), _ENGINE),
    "load_settings": "it reads a pickle; settings are read from pyproject.toml and DSPY_STREAM_*",
}


def absent(name: str) -> str:
    """What an error adds about a name of DSPy that is not here; empty for every other name."""
    said = _ABSENT.get(name, "")
    return f": not in dspy_stream; {said}" if said else ""


def member(path: str, name: str) -> Any:
    """A name of one of the paths, or a path below it.

    Raises:
        AttributeError: there is neither.
    """
    if name in _HOMES[path].split():
        home, called = _ELSEWHERE.get(name, ("", name))
        value: Any = importlib.import_module(f"{_ROOT}.{home}" if home else _ROOT)
        for part in called.split("."):
            value = getattr(value, part)
        return value
    if f"{path}.{name}" in _HOMES:
        return importlib.import_module(f"{_ROOT}.{path}.{name}")
    raise AttributeError(f"module '{_ROOT}.{path}' has no attribute {name!r}{absent(name)}")


class _Place(ModuleType):
    """A module of the table."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return member(self.__name__.removeprefix(f"{_ROOT}."), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # `streaming` has a function and a module of the same name: as in DSPy, the attribute is the function.
        if not (isinstance(value, _Place) and name in self.__all__):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})


class _Finder:
    """Finds the modules of the table, after all others have found nothing; makes them, too."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG004
        place = fullname.removeprefix(f"{_ROOT}.")
        if place == fullname:
            return None
        if place in _HOMES:
            return ModuleSpec(fullname, _Finder, is_package=True)  # type: ignore[arg-type]
        said = next(filter(None, map(absent, (place, *place.split(".")))), "")
        if said:  # without its name, or `from package import name` would swallow it
            raise ModuleNotFoundError(f"{fullname!r} cannot be imported{said}")
        return None

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        module = _Place(spec.name, f"What DSPy keeps in {spec.name.replace(_ROOT, 'dspy')}.")
        module.__dict__["__all__"] = _HOMES[spec.name.removeprefix(f"{_ROOT}.")].split()
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing to run."""


def install() -> None:
    """Let Python's import find the paths; done once, by the package itself."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
