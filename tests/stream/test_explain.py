"""What a flow says about itself, and what bytewax's own picture of it shows."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from dspy_stream.modules import ChainOfThought, Predict
from dspy_stream.modules.compose import Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.route import Loop, Route
from dspy_stream.stream import Stream
from dspy_stream.stream.sinks import MemorySink

ROOT = Path(__file__).parents[2]


def keep(row):
    return True


def flow(order="unordered"):
    program = Program(
        ask=Predict("text -> a").using(capacity=3, retries=2, timeout=1.5, fallback=Predict("text -> a")),
        both=Fork(x=Predict("a -> b"), y=ChainOfThought("a -> c")),
        way=Route("b", {'say "hi" <b>': Predict("b -> d")}, default=lambda c: {"d": c}),
        last=Loop(lambda d: {"d": d}, "d", 3),
    )
    stream = Stream.from_iterable([{"text": "t"}], name="shown").filter(keep)
    return stream.through(program, order=order).using(lm="openai/gpt-4o-mini").write(MemorySink())


class TestExplain:
    def test_has_a_line_for_every_step(self):
        lines = flow().explain().splitlines()
        assert lines[0] == "flow shown"
        table = {line.split()[0]: line for line in lines[4:] if line}
        assert lines[2].split() == ["step", "module", "signature", "model", "capacity", "order", "policy"]
        assert table["02_ask"].split()[1:] == [
            *("Predict", "text", "->", "a", "openai/gpt-4o-mini", "3", "unordered", "1.5", "s,", "2"),
            *("retries,", "then", "Predict,", "dead_letter"),
        ]
        assert "filter keep" in table["01_filter"]
        assert "a -> reasoning, c" in table["04_both_y"]
        assert "join of x, y" in table["05_join"]
        assert table["write"].split()[1] == "MemorySink"

    def test_says_why_a_part_runs_whole(self):
        assert flow().explain().splitlines()[-1].endswith("a loop runs whole, up to 3 rounds a row")

    def test_a_model_that_is_the_run_s_is_not_guessed(self):
        text = Stream.from_iterable([{"a": 1}]).through(Predict("a -> b")).write(MemorySink()).explain()
        assert "(the run's)" in text

    def test_the_parts_of_a_program_are_shown_in_one_line_where_they_run_as_one(self):
        stream = Stream.from_iterable([{"a": 1}]).through(Predict("a -> b") | Predict("b -> c"), split=False)
        assert "a -> b; b -> c" in stream.write(MemorySink()).explain()


class TestMermaid:
    def test_shows_steps_and_edges(self):
        text = flow().to_mermaid()
        assert text.startswith("flowchart TD\n")
        assert '["02_ask<br/>text -&gt; a"]' in text
        assert '-- "say #quot;hi#quot; &lt;b&gt;" -->' in text
        assert '{"b"}' in text
        assert '(("05_join"))' in text
        # three edges into the join: both branches, and the row as it was before them
        join = next(line.split("((")[0].strip() for line in text.splitlines() if "05_join" in line)
        assert sum(line.endswith(f"--> {join}") for line in text.splitlines()) == 3

    def test_an_ordered_flow_has_a_picture_too(self):
        assert 'all" -->' in flow("ordered").to_mermaid()


class TestBytewax:
    def visualize(self, cwd, name, form):
        done = subprocess.run(
            [sys.executable, "-m", "bytewax.visualize", name, "-o", form],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def test_draws_a_program_of_parts(self, tmp_path):
        (tmp_path / "shown.py").write_text(
            textwrap.dedent(
                """
                import dspy_stream as ds
                from dspy_stream.modules.fork import Fork
                from dspy_stream.modules.route import Route
                program = ds.Predict("t -> a") | Fork(x=ds.Predict("a -> b"), y=ds.Predict("a -> c"))
                program |= Route("b", {"1": ds.Predict("c -> d")}, default=ds.Predict("b -> d"))
                flow = ds.Stream.from_iterable([{"t": 1}], name="shown").through(program).compile()
                """
            )
        )
        steps = {
            step["step_name"] for step in json.loads(self.visualize(tmp_path, "shown", "json"))["substeps"]
        }
        assert {"01_Predict", "02_x", "03_y", "04_join", "05_route", "06_1", "08_default"} <= steps
        assert "04_join" in self.visualize(tmp_path, "shown:flow", "mermaid")

    def test_draws_the_flows_of_the_examples(self):
        assert "triage" in self.visualize(ROOT, "flows.banking", "mermaid")
