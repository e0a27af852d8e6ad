"""The command line in process: what it prints on both channels, and its exit code."""

import io
import sys
from dataclasses import dataclass

import orjson
import pytest

from dspy_stream.cli.main import main

FLOW = """
import dspy_stream as ds


def answer(request):
    text = request.tail[0].content
    return "no number" if "bad" in text else {"number": len(text) % 7}


flow = (
    ds.Stream.read("in.jsonl", name="demo")
    .through(ds.Predict("question -> number: int"), name="ask")
    .limit_failures(consecutive=5, ratio=None)
    .using(lm=ds.ScriptedLM(answer, cache=True))
    .write("out.jsonl")
)
"""

HEALTHY = FLOW.replace('"no number" if "bad" in text else ', "")


@dataclass
class Said:
    code: int
    out: str
    err: str

    def json(self):
        return orjson.loads(self.out)


class Bytes(io.TextIOWrapper):
    """A text stream over bytes, as standard output is."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode()


@pytest.fixture
def cli(monkeypatch):
    def call(*arguments, stdin=b""):
        out, err = Bytes(), Bytes()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["dspy-stream", *map(str, arguments)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setenv("COLUMNS", "200")
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Said(code, out.text(), err.text())

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a flow and ten questions, two of which cannot be answered."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "healthy.py").write_text(HEALTHY)
    questions = [f"q{number}" if number not in (3, 6) else f"bad {number}" for number in range(10)]
    (tmp_path / "in.jsonl").write_bytes(
        b"".join(orjson.dumps({"question": text}) + b"\n" for text in questions)
    )
    return tmp_path
