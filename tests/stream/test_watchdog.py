"""A flow whose rows' own code blocks it says so, and what to do."""

import threading

from dspy_stream.modules import Module
from dspy_stream.stream import Stream
from dspy_stream.stream.sinks import MemorySink


def test_blocking_code_is_told_where_it_belongs(monkeypatch):
    told = threading.Event()

    class Ear:
        text = ""

        def write(self, text):
            self.text += text
            if "All stacks" in text:
                told.set()

        def flush(self):
            pass

    class Blocks(Module):
        def forward(self, n):
            assert told.wait(60)
            return {"m": n}

    ear = Ear()
    monkeypatch.setattr("sys.stderr", ear)
    sink = MemorySink()
    Stream.from_iterable([{"n": 1}]).through(Blocks(), timeout=0.1).write(sink).run(
        state=None, quiet=True, stuck=0.2
    )
    assert len(sink.rows) == 1
    assert "use isolation='thread' or 'process' for code that blocks" in ear.text
