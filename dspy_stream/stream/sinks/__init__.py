"""Where rows go."""

from dspy_stream.stream.sinks.base import Position, Sink, SinkPartition
from dspy_stream.stream.sinks.choose import write
from dspy_stream.stream.sinks.memory import MemorySink, NullSink

__all__ = ["MemorySink", "NullSink", "Position", "Sink", "SinkPartition", "write"]
