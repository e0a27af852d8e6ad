"""One program three ways: called, as one operator, and as an operator for each of its parts."""

import asyncio
import random
import re
import threading
from datetime import timedelta
from enum import Enum

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main

from dspy_stream.errors import FlowError, InputError, LMAuthError, RowError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.lm.secret import Secret
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.compose import Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.part import Apply
from dspy_stream.modules.route import Loop, Route
from dspy_stream.modules.together import GUARD
from dspy_stream.modules.trace import trace
from dspy_stream.program import Prediction
from dspy_stream.rows import Origin, Row
from dspy_stream.stream import Stream
from dspy_stream.stream.compile import by_id, freeze_item, step_ids, thaw_item, unkey
from dspy_stream.stream.job import Job
from dspy_stream.stream.join import Elsewhere, JoinLogic
from dspy_stream.stream.sinks import MemorySink
from dspy_stream.stream.work import Dropped


def inputs_of(request):
    return dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*)", request.tail[-1].content))


def wanted(request):
    told = request.tail[-1].content.rsplit("Respond", 1)[-1]
    return [name for name in re.findall(r"\[\[ ## (\w+) ## \]\]", told) if name != "completed"]


def answers(**fixed):
    """A model that answers each output with its name and the inputs; a poisoned text fails."""

    async def answer(request):
        given = inputs_of(request)
        await asyncio.sleep(random.random() * 0.002)
        if any("poison" in message.content for message in request.tail):  # also when asked to repair it
            return "I would rather not."
        return {name: fixed.get(name, f"{name}({'+'.join(given.values())})") for name in wanted(request)}

    return ScriptedLM(answer, cache=True)


def run(stream, **options):
    rows, letters = MemorySink(), MemorySink()
    options = {"lm": answers(), **options}
    report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True, **options)
    assert report.rows_in == report.rows_out + report.dead_letters + report.dropped
    return rows.rows, [row.fields for row in letters.rows], report


def source(*texts):
    return Stream.from_iterable([{"n": number, "text": text} for number, text in enumerate(texts)])


def by_number(rows):
    return {row.n: dict(row.fields) for row in rows}


def ids(stream):
    return list(step_ids([stream.node]).values())


def plain(text):
    return {"length": len(text)}


class Colour(Enum):
    RED = "red"


class Said(Predict):
    """Makes an output for "z" that it did not tell of."""

    def steps(self, inputs):
        made = yield from super().steps(inputs)
        return {**dict(made.items()), "d": 0} if inputs["text"] == "z" else made


PROGRAM = Program(
    first=Predict("text -> a"),
    both=Fork(x=Predict("a -> b"), y=Predict("text, a -> c"), z=plain),
    way=Route(lambda row: row.length % 3, {0: Predict("b -> d"), 1: plain}, default=Predict("c -> d")),
    last=Loop(lambda length: {"length": length + 4}, lambda row: row.length > 12, 5),
)


class TestNodes:
    def test_every_part_has_a_step_of_its_own(self):
        assert ids(source("a").through(PROGRAM)) == [
            *("00_read", "01_first", "02_both_x", "03_both_y", "04_both_z", "05_join"),
            *("06_route_0_0", "07_way_0", "06_route_1_1", "09_way_1", "06_route_2_default", "11_way_default"),
            *("06_route_past", "13_merge", "14_last"),
        ]
        assert ids(source("a").through(PROGRAM, split=False)) == ["00_read", "01_Program"]
        assert ids(source("a").through(PROGRAM, name="qa"))[1] == "01_qa_first"

    def test_keys_of_a_route_are_readable_in_them(self):
        keys = {Colour.RED: plain, ("a", "b"): plain, "it's": plain, -1.5: plain}
        route = Route(lambda row: row.text, keys, default=Program(last=plain))
        for order in ("ordered", "unordered"):
            found = ids(source("a").through(route, order=order))
            assert [step for step in found if "route" in step][:5] == [
                *("01_route_0_Colour_RED", "01_route_1_a_b", "01_route_2_it_s", "01_route_3_-1_5"),
                "01_route_4_default",
            ]
            steps = ["02_Colour_RED", "04_a_b", "06_it_s", "08_-1_5", "10_default_last"]
            assert [step for step in found if step in steps] == steps

    def test_step_ids_are_the_same_for_an_equal_program(self):
        assert ids(source("a").through(PROGRAM.deepcopy())) == ids(source("a").through(PROGRAM))

    def test_options_of_a_part_go_before_those_of_the_step(self):
        program = Predict("text -> a").using(capacity=3, retries=2, name="ask") | Predict("a -> b")
        stream = source("a").through(program, capacity=9, timeout=4.0, on_error="skip")
        first, second = (node.operation for node in stream.node.chain()[1:])
        assert (first.label, first.capacity, first.retries, first.timeout) == ("ask", 3, 2, 4.0)
        assert (second.label, second.capacity, second.retries, second.on_error) == ("Predict", 9, 0, "skip")

    def test_a_program_governed_as_a_whole_runs_as_one(self):
        pair = Program(p=Predict("text -> a"), q=Predict("a -> b"))
        program = Program(pair=pair.using(retries=1), end=Predict("b -> c"))
        stream = source("a").through(program)
        assert ids(stream) == ["00_read", "01_pair", "02_end"]
        assert "all its parts together" in stream.node.chain()[1].operation.note

    def test_a_part_may_be_given_to_a_stream(self):
        stream = source("a", "poison").through(
            Predict("text -> a").using(fallback=lambda text: {"a": "-"}, capacity=2)
        )
        assert stream.node.operation.capacity == 2
        rows, _, _ = run(stream)
        assert {row.text: row.a for row in rows} == {"a": "a(a)", "poison": "-"}

    def test_another_program_has_another_digest(self):
        def digest(**changes):
            parts = {"a": Predict("text -> a"), "b": Route("a", {"1": plain}, default=plain), **changes}
            return source("a").through(Program(**parts)).write(MemorySink()).spec.digest(None)

        other = lambda text: {"length": 0}  # noqa: E731
        found = [
            digest(),
            digest(b=Route("a", {"2": plain}, default=plain)),
            digest(b=Route("text", {"1": plain}, default=plain)),
            digest(b=Route("a", {"1": plain}, default=other)),
            digest(b=Fork(x=plain, y=Predict("text -> z"))),
            digest(a=Predict("text -> a").using(fallback=lambda text: {"a": "-"})),
        ]
        assert len(set(found)) == len(found)
        assert digest() == found[0]

    def test_reading_something_else_keeps_the_parts(self):
        sink = MemorySink()
        flow = source("a").through(PROGRAM).using(lm=answers()).write(sink)
        flow.reading([{"n": 5, "text": "bbb"}]).run(state=None, quiet=True)
        assert [row.a for row in sink.rows] == ["a(bbb)"]

    def test_a_missing_column_is_found_before_any_call(self):

        with pytest.raises(InputError, match=r"no column 'context', which step 02_Predict"):
            run(source("a").through(Predict("text -> a") | Predict("a, context -> b")))


class Upper(Module):
    def forward(self, text):
        return Prediction(upper=text.upper())


def programs():
    """Random programs over the same fields; each part only reads what is sure to be there."""
    rng = random.Random(11)

    def atom(out):
        return rng.choice(
            [
                lambda: Predict(f"text -> {out}"),
                lambda: ChainOfThought(f"text -> {out}").using(outputs=[out]),
                lambda: Apply(lambda text, out=out: {out: text[::-1]}),
                lambda: Apply(lambda text, n, out=out: {out: 1 // (n % 5)}).using(
                    fallback=Predict(f"text -> {out}") if rng.random() < 0.5 else None
                ),
                lambda: Loop(lambda text, out=out: {out: len(text)}, out, 2),
            ]
        )()

    def tree(depth, out):
        kind = rng.choice(["atom", "pipe", "fork", "route"]) if depth else "atom"
        if kind == "atom":
            return atom(out)
        if kind == "pipe":
            return Program(one=tree(depth - 1, f"{out}l"), two=tree(depth - 1, f"{out}r"))
        if kind == "fork":
            return Fork(one=tree(depth - 1, f"{out}x"), two=tree(depth - 1, f"{out}y"))
        return Route(
            rng.choice([lambda row: row.n % 3, "n"]),
            {0: tree(depth - 1, f"{out}p"), 1: tree(depth - 1, f"{out}q"), 2: tree(depth - 1, f"{out}q")},
            default=tree(depth - 1, f"{out}s") if rng.random() < 0.7 else None,
        )

    return [tree(3, "m") for _ in range(14)]


TEXTS = [f"t{number}" if number % 7 else f"poison{number}" for number in range(25)]


@pytest.mark.parametrize("program", programs(), ids=lambda program: type(program).__name__)
@pytest.mark.parametrize("order", ["unordered", "ordered"])
def test_the_same_program_all_three_ways(program, order):
    stream = source(*TEXTS).limit_failures(consecutive=None, ratio=None)
    if not isinstance(program, Module):  # a part with options
        program = Program(only=program)
    one, one_dead, _ = run(stream.through(program, split=False, order=order))
    many, many_dead, _ = run(stream.through(program, order=order))
    assert by_number(one) == by_number(many)
    assert {d["row_id"]: d["error"]["code"] for d in one_dead} == {
        d["row_id"]: d["error"]["code"] for d in many_dead
    }
    if order == "ordered":
        assert [row.n for row in many] == sorted(row.n for row in many)
    lm = answers()
    called = {}
    for number, text in enumerate(TEXTS):
        program.set_lm(lm)
        try:
            called[number] = {"n": number, "text": text, **program(n=number, text=text).toDict()}
        except (RowError, ZeroDivisionError):
            continue
        finally:
            program.set_lm(None)
    assert called == by_number(many)


class TestDeadLetters:
    def test_hold_the_row_as_far_as_it_had_come(self):
        program = Program(up=Upper(), ask=Predict("text -> a"), end=Predict("a -> b"))
        rows, letters, report = run(source("x", "poison", "y").through(program))
        assert [row.b for row in sorted(rows, key=lambda row: row.n)] == ["b(a(x))", "b(a(y))"]
        (letter,) = letters
        assert letter["step"] == "02_ask"
        assert letter["fields"] == {"n": 1, "text": "poison", "upper": "POISON"}
        assert report.dead_letters == 1

    def test_of_a_branch_are_written_once_with_what_the_others_made(self):
        def fails(text):
            raise KeyError("z")

        program = Fork(x=Predict("text -> a"), y=Upper(), z=fails)
        rows, letters, report = run(
            source("t", "poison").through(program).limit_failures(consecutive=None, ratio=None)
        )
        assert rows == []
        assert report.dead_letters == 2
        by_text = {letter["fields"]["text"]: letter for letter in letters}
        assert by_text["t"]["fields"] == {"n": 0, "text": "t", "upper": "T", "a": "a(t)"}
        assert by_text["t"]["step"] == "03_z"
        both = by_text["poison"]
        assert (both["step"], both["stage"]) == ("01_x", "parse")
        assert both["error"]["also"] == "03_z: 'z'"
        assert both["fields"]["upper"] == "POISON"

    @pytest.mark.parametrize("traced", [False, True])
    def test_of_a_plain_forward_name_the_predictor(self, traced):
        module = Debate()
        module.judge = ChainOfThought("pro, con, points: list[str] -> verdict: bool")
        module.con.lm = ScriptedLM(lambda request: {"argument": "poison", "points": "[]"}, cache=True)
        stream = source("poison", "ok").through(trace(module) if traced else module)
        _, letters, _ = run(stream, lm=answers(verdict="True", points="[]"))
        assert sorted(letter["error"]["predictor"] for letter in letters) == ["judge.predict", "pro"]
        assert [letter["stage"] for letter in letters] == ["parse", "parse"]

    @pytest.mark.parametrize("split", [True, False])
    def test_of_a_fallback_that_fails_say_why_it_had_its_turn(self, split):
        key = Secret("sk-a-key-of-somebody", "https://api.openai.com")

        def fails(text):
            raise ValueError(f"no page for {text}, {key.reveal('https://api.openai.com')}")

        def fails_too(text):
            raise KeyError("colleague")

        program = Program(a=Apply(fails).using(fallback=fails_too), b=Upper())
        _, (letter,), _ = run(source("x").through(program, split=split))
        assert (letter["error"]["type"], letter["error"]["message"]) == ("KeyError", "'colleague'")
        assert letter["error"]["fallback_of"].startswith("ValueError: no page for x, ")
        assert "sk-a-key-of-somebody" not in letter["error"]["fallback_of"]

    def test_of_one_predictor_or_of_other_code_name_none(self):
        def fails(text):
            raise KeyError(text)

        for module in (Predict("text -> a"), Apply(fails)):
            _, letters, _ = run(source("poison").through(module))
            assert "predictor" not in letters[0]["error"]

    def test_a_row_without_a_route(self):
        rows, letters, _ = run(source("a", "b").through(Route("text", {"a": Upper()})))
        assert [row.upper for row in rows] == ["A"]
        assert letters[0]["step"] == "01_route"
        assert "no route for text='b'" in letters[0]["error"]["message"]

    def test_a_clash_that_only_the_run_shows(self):
        fork = Fork(x=lambda text: {"a": 1}, y=lambda text, n: {"a": 2} if n else {"b": 2})
        rows, letters, _ = run(source("a", "b").through(fork))
        assert [row.b for row in rows] == [2]
        assert "both have the output 'a'" in letters[0]["error"]["message"]

    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    @pytest.mark.parametrize("split", [None, False])
    @pytest.mark.parametrize(
        "other",
        [
            lambda n: {"n": n},
            lambda n: {"n": True},
            lambda n: {"n": 1.0},
            lambda n: {"n": 2},
            Route("n", {1: lambda n: {"n": 1}}),
            Fork(p=lambda n: {"n": True}, q=lambda n: {"m": 1}),
            Program(p=lambda n: {"n": 5}, q=lambda n: {"n": 1}),
        ],
    )
    def test_a_clash_is_told_by_what_was_written_and_not_by_its_value(self, other, split, order):
        clash = Fork(x=lambda n: {"n": 1}, y=other)
        lone = Fork(x=lambda n: {"m2": n}, y=other)
        with pytest.raises(RowError, match="both have the output 'n'"):
            clash(n=1)
        stream = source("a", "b").filter(lambda row: row.n == 1)
        rows, letters, _ = run(stream.through(clash, split=split, order=order))
        assert rows == []
        assert "both have the output 'n'" in letters[0]["error"]["message"]
        rows, letters, _ = run(stream.through(lone, split=split, order=order))
        assert letters == []
        expected = {"text": "b", **dict(lone(n=1).items())}
        assert [repr(sorted(dict(row.fields).items())) for row in rows] == [repr(sorted(expected.items()))]

    @pytest.mark.parametrize("split", [True, False])
    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    @pytest.mark.parametrize("kind", ["route", "fork"])
    def test_between_the_parts_is_the_program_s_own(self, kind, order, split):
        if kind == "route":
            program = Route("text", {"a": Predict("text -> c: int = 7")})
        else:
            program = Fork(
                x=Said("text -> c: int = 7"),
                y=Predict("text -> d: int = 8"),
            )

        def through(on_error, **options):
            step = {"order": order, "split": split, "on_error": on_error, **options}
            return run(source("a", "z").through(program, **step), lm=answers(c=1, d=2))

        with pytest.raises(RowError, match=r"no route|both have the output"):
            through("stop")
        rows, letters, report = through("skip")
        assert ([row.n for row in rows], letters, report.dropped) == ([0], [], 1)
        rows, letters, report = through("default", defaults={"c": 9})
        assert (letters, report.defaulted) == ([], 1)
        found = by_number(rows)
        assert found[0]["c"] == 1
        assert found[1]["c"] == 9
        assert found[1].get("d", 8) == 8
        assert found[1]["text"] == "z"
        rows, letters, report = through("dead_letter")
        assert ([row.n for row in rows], len(letters)) == ([0], 1)

    @pytest.mark.parametrize("split", [None, False])
    def test_a_function_that_chooses_wrongly_stops_the_flow_with_its_own_error(self, split):
        route = Route(lambda row: 1 // row.n, {1: Upper()})
        with pytest.raises(ZeroDivisionError):
            run(source("a", "b").through(route, split=split, on_error="stop"))

    @pytest.mark.parametrize("split", [None, False])
    def test_default_outputs_are_those_of_the_part_that_failed(self, split):
        """Apart, a row goes on from there; whole, it goes past all of the program."""
        program = Program(
            a=Predict("text -> a"), b=Route("text", {"a": Predict("text -> b")}), c=Predict("a -> c")
        )
        rows, letters, _ = run(source("a", "z").through(program, split=split, on_error="default"))
        assert letters == []
        whole = {"a": None, "b": None, "c": None}
        assert by_number(rows)[1] == {
            **{"n": 1, "text": "z"},
            **(whole if split is False else {"a": "a(z)", "b": None, "c": "c(a(z))"}),
        }

    @pytest.mark.parametrize("split", [None, False])
    @pytest.mark.parametrize(
        "around", [lambda part: part, lambda part: Loop(Program(in_a_loop=part), "a", 1)]
    )
    @pytest.mark.parametrize(
        ("chosen", "of_all", "dropped"),
        [("skip", "dead_letter", 1), ("dead_letter", "skip", 0), ("skip", "stop", 1), (None, "skip", 1)],
    )
    def test_what_a_part_chooses_goes_before_what_the_step_does(self, split, around, chosen, of_all, dropped):
        part = Predict("text -> a").using(**{"on_error": chosen} if chosen else {})
        program = Program(first=around(part), last=Predict("a -> b"))
        stream = source("s", "poison", "t").through(program, split=split, on_error=of_all)
        rows, letters, report = run(stream)
        assert sorted(row.b for row in rows) == ["b(a(s))", "b(a(t))"]
        assert (report.dropped, len(letters)) == (dropped, 1 - dropped)

    @pytest.mark.parametrize("split", [None, False])
    def test_defaults_of_a_part_stand_for_all_that_fails_in_it(self, split):
        inner = Program(asks=Predict("text -> a").using(on_error="skip"))
        program = Program(outer=inner.using(on_error="default", defaults={"a": "-"}), end=Predict("a -> b"))
        rows, letters, report = run(source("s", "poison").through(program, split=split))
        assert ({row.text: row.b for row in rows}, letters) == ({"s": "b(a(s))", "poison": "b(-)"}, [])
        assert (report.dropped, report.defaulted) == (0, 1)

    @pytest.mark.parametrize("split", [None, False])
    def test_a_part_chooses_also_for_rows_that_lack_its_field(self, split):
        fork = Fork(
            x=Predict("more -> x").using(on_error="default"),
            y=Program(z=Predict("other -> z").using(on_error="skip")),
        )
        stream = Stream.from_iterable([{"n": 0, "more": "m", "other": "o"}, {"n": 1, "other": "o"}, {"n": 2}])
        rows, letters, report = run(stream.through(fork, split=split))
        assert {row.n: (row.x, row.z) for row in rows} == {0: ("x(m)", "z(o)"), 1: (None, "z(o)")}
        assert (report.dropped, letters) == (1, [])

    @pytest.mark.parametrize("split", [None, False])
    def test_of_several_branches_that_fail_the_strictest_counts(self, split):
        def failing(on_error):
            return Predict("text -> a").using(on_error=on_error, outputs={"a": f"of_{on_error}"})

        pair = Fork(x=failing("skip"), y=failing("dead_letter"))
        rows, letters, report = run(source("s", "poison").through(pair, split=split))
        assert ([row.n for row in rows], len(letters), report.dropped) == ([0], 1, 0)
        with pytest.raises(RowError):
            run(source("poison").through(Fork(x=failing("skip"), y=failing("stop")), split=split))

    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    def test_skipping_in_a_branch_drops_the_row_once(self, order):
        fork = Fork(x=Predict("text -> a").using(on_error="skip"), y=Upper())
        rows, letters, report = run(source("s", "poison", "t").through(fork, order=order))
        assert sorted(row.upper for row in rows) == ["S", "T"]
        assert (report.dropped, letters) == (1, [])

    def test_stopping_in_a_branch_ends_the_flow(self):
        fork = Fork(x=Predict("text -> a").using(on_error="stop"), y=Upper())
        with pytest.raises(RowError):
            run(source("poison").through(fork))

    def test_what_came_dead_or_dropped_passes_once(self):
        stream = source("a", "bb", "ccc").filter(lambda row: row.n != 1).through(Predict("text -> a"))
        for order in ("unordered", "ordered"):
            rows, letters, report = run(
                stream.map(lambda row: {**row, "k": 1 // row.n}).through(
                    Fork(x=Upper(), y=Route("n", {2: plain}), z=Predict("text -> z")), order=order
                )
            )
            assert [row.upper for row in rows] == ["CCC"]
            assert (report.dropped, len(letters)) == (1, 1)

    def test_an_error_of_the_flow_ends_it(self):
        lm = ScriptedLM(lambda request: LMAuthError("no key"))
        with pytest.raises(LMAuthError):
            run(source("a").through(Fork(x=Predict("text -> a"), y=Upper())), lm=lm)


class TestPolicies:
    def test_fallback_and_outputs_of_a_step_are_those_of_a_part(self):
        options = {"fallback": lambda text: {"a": f"instead of {text}"}, "outputs": {"a": "b"}}
        for module in (Predict("text -> a"), Program(p=Predict("text -> a"))):
            given = source("x", "poison").through(module, **options)
            used = source("x", "poison").through(module.using(**options))
            assert ids(given) == ids(used)
            assert given.node.operation.identity() == used.node.operation.identity()
            for stream in (given, used):
                assert [row["b"] for row in by_number(run(stream)[0]).values()] == [
                    "a(x)",
                    "instead of poison",
                ]
        with pytest.raises(FlowError, match="a fallback is a module"):
            source("x").through(Predict("text -> a"), fallback=3)
        own = Predict("text -> a").using(fallback=lambda text: {"a": "own"})
        assert run(source("poison").through(own, fallback=plain))[0][0].a == "own"

    def test_capacity_is_each_part_s_own(self):
        most = {"x": 0, "y": 0}
        now = {"x": 0, "y": 0}

        def part(name):
            async def work(text):
                now[name] += 1
                most[name] = max(most[name], now[name])
                await asyncio.sleep(0.002)
                now[name] -= 1
                return {name: text}

            return Apply(work)

        fork = Fork(x=part("x").using(capacity=2), y=part("y"))
        run(source(*"abcdefghijklmnopqrstuvwxyz").through(fork, capacity=7))
        assert most == {"x": 2, "y": 7}

    def test_retries_timeout_and_fallback_are_each_part_s_own(self):
        tries = {}

        def flaky(text):
            tries[text] = tries.get(text, 0) + 1
            if tries[text] < 3:
                raise ZeroDivisionError
            return {"a": text}

        async def slow(text):
            await asyncio.sleep(60)

        program = Program(
            flaky=Apply(flaky).using(retries=2),
            slow=Apply(slow).using(timeout=0.05, fallback=lambda text: {"b": "instead"}),
        )
        rows, letters, _ = run(source("s", "t").through(program))
        assert letters == []
        assert [(row.a, row.b) for row in sorted(rows, key=lambda r: r.n)] == [
            ("s", "instead"),
            ("t", "instead"),
        ]

    def test_usage_is_told_by_part(self):
        program = Program(one=Predict("text -> a"), two=Predict("a -> b"))
        _, _, report = run(source("s", "t").through(program))
        assert {(part.step, part.calls) for part in report.usage} == {("01_one", 2), ("02_two", 2)}

    def test_with_several_workers(self):
        rows, _, _ = run(source(*TEXTS[1:7]).through(PROGRAM), workers=2)
        one, _, _ = run(source(*TEXTS[1:7]).through(PROGRAM, split=False))
        assert by_number(rows) == by_number(one)


def test_what_stands_for_a_row_survives_a_snapshot():
    origin = Origin("s", "p", 3, 4)
    for item in (Elsewhere("r", origin), Dropped("r", origin), Dropped("r")):
        back = thaw_item(freeze_item(item), {})
        assert (back, back.origin) == (item, item.origin)
        assert type(back) is type(item)


def test_code_that_goes_on_in_a_branch_is_watched():
    """A row that kills the process is known by whose code was running."""
    noted = []

    class Watched:
        def entered(self):
            noted.append("in")

        def left(self):
            noted.append("out")

    async def waits(text):
        await asyncio.sleep(0)
        noted.append("code")
        return {}

    token = GUARD.set(Watched())
    try:
        Fork(x=waits, y=plain)(text="t")
    finally:
        GUARD.reset(token)
    assert noted[0] == "in"
    assert noted[-1] == "out"
    assert noted.count("in") == noted.count("out")


def numbered(count):
    return [{"id": str(number), "n": number, "text": f"t{number}"} for number in range(count)]


class TestResuming:
    """The engine's own crash inside the data: every row comes out once, and whole."""

    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    def test_halves_that_wait_survive_a_crash(self, tmp_path, order):

        def row(number):
            return Row(f"r{number}", {"n": number}, Origin("s", "p", number))

        def half(number, place):
            made = row(number)
            return (place, made if place == 2 else made.with_fields(**{"ab"[place]: number}))

        # x is a row ahead of y, and the base comes with x: at the crash halves wait.
        items = []
        for number in range(6):
            items += [half(number, 2), half(number, 0)]
            if number:
                items.append(half(number - 1, 1))
            if number == 3:
                items.append(TestingSource.ABORT())
        items.append(half(5, 1))

        init_db_dir(tmp_path, 1)
        recovery = RecoveryConfig(str(tmp_path))
        out = []

        def flow():
            made = Dataflow("join")
            stream = op.input("in", made, TestingSource(items, batch_size=1))
            keyed = op.key_on("key", stream, lambda pair: by_id([pair[1]])[0][0])
            job = Job("j", "d")
            joined = op.stateful_batch(
                "join",
                keyed,
                lambda state: JoinLogic(
                    "join",
                    ["x", "y"],
                    job,
                    freeze=freeze_item,
                    thaw=lambda frozen: thaw_item(frozen, {}),
                    resumed=state,
                ),
            )
            op.output("out", op.flat_map_batch("unkey", joined, unkey), TestingSink(out))
            return made

        for _ in range(2):
            run_main(flow(), epoch_interval=timedelta(0), recovery_config=recovery)
        found = {made.id: dict(made.fields) for made in out}
        assert found == {f"r{n}": {"n": n, "a": n, "b": n} for n in range(6)}
        assert len(out) in (6, 7)  # a sink of bytewax's tests does not take back what it wrote

    def test_a_flow_that_was_stopped_goes_on(self, tmp_path):
        """Stopped in the middle of a fork, with one branch ahead of the other."""

        hold, jobs = threading.Event(), []

        class Waits(Module):
            async def aforward(self, text, n):
                if n >= 3 and not hold.is_set():
                    jobs[-1].stop(0.2)
                    await asyncio.sleep(60)
                return {"b": text}

        def build(sink):
            fork = Fork(x=Upper(), y=Waits())
            program = Program(f=fork, e=Route("n", {0: plain}, default=Predict("upper -> d")))
            return (
                Stream.from_iterable(numbered(12), id="id", name="s").through(program, capacity=2).write(sink)
            )

        out = tmp_path / "out.jsonl"
        first = build(out).run(
            state=tmp_path / "state",
            lm=answers(),
            quiet=True,
            epoch=0.05,
            watch=lambda job: (jobs.append(job), lambda: None)[1],
        )
        assert first.status == "stopped"
        assert first.rows_out < 12
        hold.set()
        second = build(out).run(state=tmp_path / "state", lm=answers(), quiet=True, epoch=0.05)
        assert (second.status, second.rows_out, second.resumed) == ("finished", 12, True)

        lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
        assert sorted(line["n"] for line in lines) == list(range(12))
        assert all(line["upper"] == line["text"].upper() and line["b"] == line["text"] for line in lines)


def test_what_is_no_module_is_refused():
    with pytest.raises(FlowError, match="such as Predict"):
        source("a").through(5)


class Debate(Module):
    def __init__(self):
        self.pro, self.con = Predict("text -> argument"), Predict("text -> argument, points: list[str]")
        self.judge = Predict("pro, con, points: list[str] -> verdict: bool")

    def forward(self, text, tone="dry"):
        pro, con = self.pro(text=text).argument, self.con(text=text)
        verdict = self.judge(pro=pro, con=con.argument, points=con.points).verdict
        return Prediction(verdict=verdict, sides=[pro, con.argument], points=con.points, tone=tone)


class Decides(Module):
    def __init__(self):
        self.ask = Predict("text -> a")

    def forward(self, text):
        made = self.ask(text=text)
        return made if len(made.a) > 3 else Prediction(a="short")


class TestTraced:
    lm = staticmethod(lambda: answers(verdict="True", points='["p", "q"]'))

    def test_every_call_is_a_step(self):
        stream = source("s").through(Debate(), split=True)
        assert ids(stream) == ["00_read", "01_pro", "02_con", "03_join", "04_judge", "05_finish"]
        assert ids(source("s").through(Debate())) == ["00_read", "01_Debate"]

    @pytest.mark.parametrize("order", ["unordered", "ordered"])
    def test_answers_as_one_step_does(self, order):
        texts = ["s", "poison", "t", "u"]
        stream = source(*texts).limit_failures(consecutive=None, ratio=None)
        one, one_dead, _ = run(stream.through(Debate(), order=order), lm=self.lm())
        many, dead, _ = run(stream.through(Debate(), split=True, order=order), lm=self.lm())
        assert by_number(one) == by_number(many)
        assert many[0].points == ["p", "q"]
        assert (many[0].verdict, many[0].tone) == (True, "dry")
        assert len(one_dead) == len(dead) == 1
        assert (dead[0]["step"], dead[0]["fields"]["text"]) == ("01_pro", "poison")
        if order == "ordered":
            assert [row.n for row in many] == [0, 2, 3]

    @pytest.mark.parametrize("split", [False, None, True])
    def test_a_dead_letter_names_the_predictor_as_the_module_does(self, split):
        class Listed(Module):
            def __init__(self):
                self.asks = [ChainOfThought("text -> a"), Predict("text -> a")]

            def forward(self, text):
                first, second = self.asks[1](text=text), self.asks[0](text="ok")
                return Prediction(a=first.a, b=second.a, c=self.asks[0](text=text).a)

        stream = source("poison").through(Listed(), split=split)
        _, letters, _ = run(stream)
        assert [letter["error"]["predictor"] for letter in letters] == ["asks[1]"]

        class Again(Listed):
            def forward(self, text):
                first = self.asks[0](text="ok").a
                return Prediction(a=first, b=self.asks[0](text=text).a)

        _, letters, _ = run(source("poison").through(Again(), split=split))
        assert [letter["error"]["predictor"] for letter in letters] == ["asks[0].predict"]

    def test_fields_of_the_row_s_own_keep_their_names(self):
        class Two(Module):
            def __init__(self):
                self.p, self.q = Predict("text -> note"), Predict("text -> note")

            def forward(self, text):
                return Prediction(both=[self.p(text=text).note, self.q(text=text).note])

        own = {"text": "s", "p.note": "mine", "p.other": 1, "q": 2}
        for split in (False, True):
            rows, _, _ = run(Stream.from_iterable([own]).through(Two(), split=split))
            assert dict(rows[0].fields) == {**own, "both": ["note(s)", "note(s)"]}
        rows, letters, _ = run(
            Stream.from_iterable([own, {**own, "text": "poison"}]).through(Two(), split=True)
        )
        assert set(letters[0]["fields"]) == set(own)

    def test_a_missing_column_is_told_among_those_of_the_input(self):
        stream = source("s").through(Debate(), split=True).through(Predict("verdict, zone -> z"))
        with pytest.raises(
            InputError, match=r"no column 'zone', .* it has: n, text, and by .*: verdict, sides, points, "
        ):
            run(stream)

    @pytest.mark.parametrize("split", [False, True])
    def test_a_call_that_did_not_make_what_is_returned_fails_as_the_step_says(self, split):
        class Lacks(Module):
            def __init__(self):
                self.p, self.q = Apply(lambda text, n: {"ab"[n]: text}), Predict("text -> c")

            def forward(self, text, n):
                made = self.p(text=text, n=n)
                return Prediction(a=made.a, c=self.q(text=text).c)

        def through(on_error):
            return run(source("x", "y").through(Lacks(), split=split, on_error=on_error))

        rows, letters, _ = through("dead_letter")
        assert [row.a for row in rows] == ["x"]
        assert letters[0]["stage"] == "module"
        assert (letters[0]["error"]["type"], letters[0]["error"]["message"]) == (
            "AttributeError",
            "'Prediction' object has no attribute 'a'; its fields: b",
        )
        rows, letters, report = through("skip")
        assert ([row.a for row in rows], letters, report.dropped) == (["x"], [], 1)
        with pytest.raises(AttributeError, match="has no attribute 'a'"):
            through("stop")

    def test_what_cannot_be_traced_runs_whole_and_says_why(self):
        stream = source("some text", "t").through(Decides(), split=True)
        assert ids(stream) == ["00_read", "01_Decides"]
        explained = stream.write(MemorySink()).explain()
        assert re.search(
            r"01_Decides: runs whole: .*test_split\.py:\d+: goes through the output 'a'", explained
        )
        rows, _, _ = run(stream)
        assert {row.a for row in rows} == {"a(some text)", "a(t)"}

    def test_a_part_that_is_one_already_needs_no_excuse(self):
        stream = source("s").through(Predict("text -> a"), split=True)
        assert stream.node.operation.note == ""

    def test_a_later_step_gets_types_back_after_a_crash(self):
        from dspy_stream.stream.typed import types_before

        stream = source("s").through(Debate(), split=True).through(Predict("verdict -> z"))
        nodes_by_id = dict(zip(ids(stream), stream.node.chain(), strict=True))
        assert set(types_before(nodes_by_id["04_judge"])) == {"\0con.points"}
        assert set(types_before(stream.node)) >= {"points"}
