"""What a description compiles to: step ids, digests, and a dataflow that opens nothing."""

import subprocess
import sys
import textwrap

import pytest
from bytewax.dataflow import Dataflow

from dspy_stream.errors import FlowError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.rows import Origin, Row
from dspy_stream.stream import Flow, Stream
from dspy_stream.stream.compile import by_id, step_ids
from dspy_stream.stream.digests import code_digest, module_digest
from dspy_stream.stream.sinks import MemorySink


def numbers():
    return Stream.from_iterable([{"n": 1}])


def ids_of(*streams):
    found = step_ids([stream.node for stream in streams])
    return list(found.values())


class TestStepIds:
    def test_say_the_place_and_the_operation(self):
        stream = (
            numbers().map(lambda row: row).through(Predict("n -> m"), name="my step!").select("m").batch(2)
        )
        assert ids_of(stream) == ["00_read", "01_map", "02_my_step_", "03_select", "04_batch"]

    def test_both_sides_of_a_branch_share_their_number(self):
        yes, no = numbers().branch(lambda row: True)
        assert ids_of(yes.map(lambda row: row), no) == ["00_read", "01_branch_yes", "02_map", "01_branch_no"]

    def test_are_the_same_for_an_equal_description(self):
        assert ids_of(numbers().batch(2)) == ids_of(numbers().batch(3))


class TestCompiling:
    def test_a_flow_is_a_dataflow(self):
        flow = numbers().write(MemorySink())
        assert isinstance(flow, Dataflow)
        assert isinstance(flow, Flow)
        assert flow.compile() is flow

    def test_opens_no_file_and_asks_no_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        lm = ScriptedLM([])
        Stream.read("missing.jsonl", name="x").through(Predict("a -> b")).using(lm=lm).write("o.jsonl")
        assert list(tmp_path.iterdir()) == []
        assert lm.call_count == 0

    def test_odd_names_become_a_valid_id(self):
        assert Stream.from_iterable([{"n": 1}], name="a b.c/ü").write(MemorySink()).flow_id == "a_b_c_ü"

    def test_every_derived_flow_runs_on_its_own(self):
        first, second = MemorySink(), MemorySink()
        flow = numbers().write(first)
        other = flow.reading([{"n": 5}, {"n": 6}]).writing(second).named("other").limiting(consecutive=3)
        assert other.run(state=None, quiet=True).flow == "other"
        assert ([row.n for row in second.rows], first.rows) == ([5, 6], [])
        assert other.spec.ends[0][1].limit.consecutive == 3
        flow.run(state=None, quiet=True)
        assert [row.n for row in first.rows] == [1]

    def test_only_one_output_can_be_replaced(self):
        yes, no = numbers().branch(lambda row: True)
        flow = yes.write(MemorySink()).also(no.write(MemorySink()))
        with pytest.raises(FlowError, match="writes to 2 places"):
            flow.writing(MemorySink())

    def test_reading_something_else_keeps_a_branch_one(self):
        yes, no = numbers().branch(lambda row: row.n > 1)
        first, second = MemorySink(), MemorySink()
        flow = yes.write(first).also(no.write(second)).reading([{"n": 1}, {"n": 2}])
        report = flow.run(state=None, quiet=True)
        assert (report.rows_in, [row.n for row in first.rows], [row.n for row in second.rows]) == (
            2,
            [2],
            [1],
        )

    def test_rows_of_one_id_go_to_one_shard(self):
        rows = [Row(f"r{number}", {}, Origin("s", "p", number)) for number in range(200)]
        shards = {row.id: shard for shard, row in by_id(rows)}
        assert shards == {row.id: shard for shard, row in by_id(reversed(rows))}
        assert len(set(shards.values())) == 8


class TestDigests:
    """They decide whether an unfinished run belongs to this program."""

    def digest(self, stream):
        return stream.write(MemorySink()).spec.digest(None)

    def test_of_equal_programs_are_equal(self):
        def build():
            return numbers().map(lambda row: {"m": row.n + 1}).through(Predict("m -> answer"), name="a")

        assert self.digest(build()) == self.digest(build())

    @pytest.mark.parametrize(
        "other",
        [
            lambda s: s.map(lambda row: {"m": row.n + 2}),
            lambda s: s.map(lambda row: {"k": row.n + 1}),
            lambda s: s.map(lambda row: {"m": row.n - 1}),
            lambda s: s.filter(lambda row: {"m": row.n + 1}),
            lambda s: s.map(lambda row: {"m": row.n + 1}).batch(2),
        ],
    )
    def test_of_other_functions_differ(self, other):
        assert self.digest(other(numbers())) != self.digest(numbers().map(lambda row: {"m": row.n + 1}))

    def test_a_captured_value_counts(self):
        def adding(number):
            return lambda row: {"m": row.n + number}

        assert code_digest(adding(1)) == code_digest(adding(1)) != code_digest(adding(2))

    def test_where_the_function_stands_does_not_count(self):
        spaces = {}
        for lines in ("", "\n\n\n"):
            space = {}
            exec(
                compile(
                    f"{lines}def f(row):\n    return {{'m': row.n in {{'a', 'b', 'c'}}}}",
                    f"x{lines!r}",
                    "exec",
                ),
                space,
            )
            spaces[lines] = code_digest(space["f"])
        assert len(set(spaces.values())) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: setattr(p, "demos", [{"a": "1", "b": "2"}]),
            lambda p: p.update_config(temperature=1.0),
            lambda p: setattr(p, "signature", p.signature.with_instructions("Sing.")),
            lambda p: setattr(p, "lm", ScriptedLM([])),
        ],
    )
    def test_of_a_predictor_follow_what_it_asks(self, change):
        predict = Predict("a -> b")
        before = module_digest(predict)
        assert module_digest(Predict("a -> b")) == before
        change(predict)
        assert module_digest(predict) != before

    def test_of_a_module_follow_its_code(self):
        def kind(text):
            class Program(Module):
                def forward(self, a):
                    return {"b": text}

            return Program

        class Program(Module):
            def forward(self, a):
                return {"c": 1}

        assert module_digest(kind("x")()) == module_digest(kind("x")())
        assert module_digest(kind("x")()) != module_digest(Program())

    def test_are_the_same_in_every_process(self):
        code = textwrap.dedent(
            """
            import dspy_stream as ds
            from dspy_stream.stream.sinks import MemorySink
            def keep(row): return row.kind in {"a", "b", "c", "d"} and row.n > len({"x": 1})
            p = ds.Predict("question -> answer: bool"); p.demos = [{"question": "q", "answer": True}]
            s = ds.Stream.from_iterable([{"n": 1}]).filter(keep).through(p)
            print(s.write(MemorySink()).spec.digest({"model": "m"}))
            """
        )
        found = set()
        for seed in ("0", "1", "2"):
            made = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                check=True,
                timeout=60,
                env={"PYTHONHASHSEED": seed},
            )
            found.add(made.stdout)
        assert len(found) == 1
