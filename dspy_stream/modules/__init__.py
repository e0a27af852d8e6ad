"""Modules: the callable parts that programs are made of."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict

if TYPE_CHECKING:
    from dspy_stream.modules.best_of_n import BestOfN as BestOfN
    from dspy_stream.modules.code_act import CodeAct as CodeAct
    from dspy_stream.modules.embedder import Embedder as Embedder
    from dspy_stream.modules.embeddings import Embeddings as Embeddings
    from dspy_stream.modules.embeddings import EmbeddingsWithScores as EmbeddingsWithScores
    from dspy_stream.modules.ensemble import Ensemble as Ensemble
    from dspy_stream.modules.format import Format as Format
    from dspy_stream.modules.knn import KNN as KNN
    from dspy_stream.modules.mcp_client import MCPClient as MCPClient
    from dspy_stream.modules.mcp_client import MCPConnectionError as MCPConnectionError
    from dspy_stream.modules.multi_chain_comparison import MultiChainComparison as MultiChainComparison
    from dspy_stream.modules.parallel import Parallel as Parallel
    from dspy_stream.modules.program_of_thought import ProgramOfThought as ProgramOfThought
    from dspy_stream.modules.react import ReAct as ReAct
    from dspy_stream.modules.react_v2 import ReActV2 as ReActV2
    from dspy_stream.modules.refine import Refine as Refine
    from dspy_stream.modules.retrieve import Retrieve as Retrieve
    from dspy_stream.modules.rlm import RLM as RLM

# Name -> the file that defines it; imported on first use.
_HOMES: Final = {
    "BestOfN": "best_of_n",
    "CodeAct": "code_act",
    "Embedder": "embedder",
    "Embeddings": "embeddings",
    "EmbeddingsWithScores": "embeddings",
    "Ensemble": "ensemble",
    "Format": "format",
    "KNN": "knn",
    "MCPClient": "mcp_client",
    "MCPConnectionError": "mcp_client",
    "MultiChainComparison": "multi_chain_comparison",
    "Parallel": "parallel",
    "ProgramOfThought": "program_of_thought",
    "RLM": "rlm",
    "ReAct": "react",
    "ReActV2": "react_v2",
    "Refine": "refine",
    "Retrieve": "retrieve",
}

__all__ = ["ChainOfThought", "Module", "Predict", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dspy_stream.modules' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dspy_stream.modules.{home}"), name)
    globals()[name] = value
    return value
