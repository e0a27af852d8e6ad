"""Tools: what is said of a function, how it is called, and what models and providers say of calls."""

from __future__ import annotations

import asyncio
import enum
import functools
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dspy_stream.configuration import context
from dspy_stream.errors import ConfigurationError
from dspy_stream.program.types import Tool, ToolCall, ToolCallResults, ToolCalls
from dspy_stream.program.types.arguments import described_arguments


class Where(BaseModel):
    city: str
    zip: int | None = None


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def weather(where: Where, unit: Unit = Unit.C, days: Annotated[int, Field(ge=1)] = 1) -> str:
    """Tell the weather.

    Args:
        where: the place,
            as exact as it is known
        days (int): how many days ahead

    Returns:
        words: not an argument
    """
    assert isinstance(where, Where)
    assert isinstance(unit, Unit)
    return f"{where.city} {unit.value} {days}"


class TestDescription:
    def test_all_of_it_comes_from_the_function(self):
        tool = Tool(weather)
        assert tool.name == "weather"
        assert tool.desc == "Tell the weather."
        assert list(tool.args) == ["where", "unit", "days"]
        assert tool.args["where"]["description"] == "the place, as exact as it is known"
        assert tool.args["days"] == {
            "default": 1,
            "description": "how many days ahead",
            "minimum": 1,
            "type": "integer",
        }
        assert tool.arg_types["where"] is Where

    def test_the_chat_completions_form(self):
        function = Tool(weather).format_as_litellm_function_call()
        assert function["type"] == "function"
        parameters = function["function"]["parameters"]
        assert parameters["required"] == ["where"]
        assert set(parameters["$defs"]) == {"Where", "Unit"}
        assert json.loads(json.dumps(function)) == function

    def test_what_is_given_goes_before_the_function(self):
        tool = Tool(weather, name="w", desc="d", arg_desc={"days": "n"}, arg_types={"days": float})
        assert (tool.name, tool.desc, tool.args["days"]["description"]) == ("w", "d", "n")
        assert tool.args["days"]["type"] == "number"

    def test_a_schema_of_ones_own(self):
        tool = Tool(lambda **given: given, name="any", args={"x": {"type": "integer"}}, arg_types={"x": int})
        assert tool.parameters()["properties"] == {"x": {"type": "integer"}}
        assert tool(x="1") == {"x": 1}

    @pytest.mark.parametrize(
        ("func", "args"),
        [
            (lambda: 1, []),
            (lambda a, b=2: a, ["a", "b"]),
            (lambda *rest, a: a, ["a"]),
            (functools.partial(lambda a, b: a, b=1), ["a", "b"]),
            ("".join, None),
            (dict, None),
        ],
    )
    def test_any_callable(self, func, args):
        if args is None:
            with pytest.raises(ConfigurationError):
                Tool(func, name="f")
        else:
            assert list(Tool(func, name="f").args) == args

    def test_methods_classes_and_callable_objects(self):
        class Counter:
            """Count."""

            def __call__(self, by: int) -> int:
                return by + 1

            def add(self, n: int) -> int:
                """Add."""
                return n

        assert Tool(Counter()).name == "Counter"
        assert Tool(Counter())(by="1") == 2
        assert list(Tool(Counter().add).args) == ["n"]

        @dataclass
        class Made:
            x: int

        assert Tool(Made)(x="2") == Made(2)

    def test_a_partial_function_is_described_by_the_one_within(self):
        tool = Tool(functools.partial(functools.partial(weather, days=2), unit=Unit.F))
        assert (tool.name, tool.desc) == ("weather", "Tell the weather.")
        assert tool.args["where"]["description"] == "the place, as exact as it is known"
        assert tool(where={"city": "Rome"}) == "Rome fahrenheit 2"

    @pytest.mark.parametrize("name", ["", "a b", "x" * 65, "naïve", "a.b"])
    def test_a_name_that_providers_refuse_is_refused(self, name):
        with pytest.raises(ConfigurationError, match="name="):
            Tool(lambda: 1, name=name)
        with pytest.raises(ConfigurationError, match="name="):
            Tool(lambda: 1)

    def test_no_function_is_refused(self):
        with pytest.raises(ConfigurationError, match="int"):
            Tool(3)

    def test_a_type_without_a_schema_is_refused(self):
        def f(x: object, y: asyncio.Lock) -> None: ...

        with pytest.raises(ConfigurationError, match="tool `f`"):
            Tool(f)

    def test_types_for_type_checkers_alone_count_as_any(self):
        def f(x: Unknown, y: int) -> None: ...  # noqa: F821

        assert list(Tool(f).args) == ["x", "y"]


class TestCalling:
    def test_arguments_are_validated(self):
        tool = Tool(weather)
        assert tool(where={"city": "Ulm"}, unit="fahrenheit", days="2") == "Ulm fahrenheit 2"
        assert tool(where=Where(city="Ulm")) == "Ulm celsius 1"

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"where": {"city": "Ulm"}, "day": 1}, r"no argument `day`; did you mean 'days'\?"),
            ({}, "misses the argument `where`"),
            ({"where": {"town": "Ulm"}}, r"Arg where\.city is invalid"),
            ({"where": {"city": "Ulm"}, "days": 0}, "Arg days is invalid"),
            ({"where": {"city": "Ulm"}, "unit": "kelvin"}, "Arg unit is invalid"),
        ],
    )
    def test_what_is_wrong_is_named(self, given, words):
        with pytest.raises(ValueError, match=words):
            Tool(weather)(**given)

    @pytest.mark.parametrize("more", [False, True])
    def test_what_is_too_much_within_a_dataclass_is_left_out(self, more):
        @dataclass
        class Point:
            x: int

        def closed(point):
            return point

        def opened(point, **further):
            return point

        tool = Tool(opened if more else closed, arg_types={"point": Point})
        found = tool(point={"x": "1", "y": 2})
        assert (found, vars(found)) == (Point(1), {"x": 1})

    def test_an_argument_may_be_named_self(self):
        def given(self: int) -> int:
            return self

        assert Tool(given)(self="1") == asyncio.run(Tool(given).acall(self=1)) == 1
        with pytest.raises(ValueError, match="has no argument `self`"):
            Tool(weather)(self=1)

    def test_defaults_are_the_functions_own(self):
        mark = object()

        def f(a: int, b: Any = mark) -> Any:
            return b

        assert Tool(f, args={"a": {"type": "integer"}})(a=1) is mark

    def test_any_further_arguments_where_the_function_takes_them(self):
        tool = Tool(lambda a, **more: (a, more), name="f")
        assert tool.has_kwargs
        assert tool(a=1, b="2") == (1, {"b": "2"})

    def test_tools_of_one_function_are_equal(self):
        assert Tool(weather) == Tool(weather)
        assert len({Tool(weather), Tool(weather)}) == 1
        assert Tool(weather) != Tool(weather, name="other")
        assert Tool(weather) != Tool(lambda where: where, name="weather")
        assert Tool(weather) != "weather"

    def test_async_tools_in_synchronous_code(self):
        async def double(n: int) -> int:
            await asyncio.sleep(0)
            return 2 * n

        with pytest.raises(ValueError, match="on an async tool: `double`"):
            Tool(double)(n=2)
        with context(allow_tool_async_sync_conversion=True):
            assert Tool(double)(n=2) == 4
            assert Tool(lambda n: double(n), name="later")(n=2) == 4

    def test_arguments_are_shown_without_references(self):
        def both(where: Where, node: Node) -> None: ...

        tool = Tool(both)
        assert tool.args["where"]["properties"]["city"]["type"] == "string"
        assert tool.args["node"]["properties"]["value"]["type"] == "integer"
        assert tool.args["node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
        assert tool.parameters()["properties"]["where"] == {"$ref": "#/$defs/Where"}
        assert {"Where", "Node"} <= set(tool.parameters()["$defs"])

    def test_async_tools(self):
        async def double(n: int) -> int:
            await asyncio.sleep(0)
            return 2 * n

        with pytest.raises(ValueError, match="acall"):
            Tool(double)(n=1)
        with pytest.raises(ValueError, match="acall"):
            Tool(lambda n: double(n), name="d")(n=1)
        assert asyncio.run(Tool(double).acall(n="2")) == 4
        assert asyncio.run(Tool(lambda n: n, name="d").acall(n=2)) == 2

    def test_as_data_it_is_a_description_alone(self):
        plain = TypeAdapter(Tool).dump_python(Tool(weather), mode="json")
        assert set(plain) == {"name", "desc", "args", "has_kwargs"}
        back = TypeAdapter(Tool).validate_python(plain)
        assert back.name == "weather"
        with pytest.raises(ValueError, match="without a function"):
            back(where={"city": "Ulm"})

    def test_a_function_stands_for_its_tool(self):
        assert TypeAdapter(list[Tool]).validate_python([weather])[0].name == "weather"


class TestToolCalls:
    ONE = ToolCall(name="f", args={"a": 1}, id="c1")

    @pytest.mark.parametrize(
        "given",
        [
            {"tool_calls": [{"name": "f", "args": {"a": 1}, "id": "c1"}]},
            [{"name": "f", "args": {"a": 1}, "id": "c1"}],
            {"name": "f", "args": {"a": 1}, "id": "c1"},
            [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            [{"type": "function_call", "call_id": "c1", "id": "fc", "name": "f", "arguments": '{"a": 1}'}],
            [{"id": "c1", "name": "f", "arguments": {"a": 1}}],
        ],
    )
    def test_every_form_is_read(self, given):
        assert ToolCalls.model_validate(given).tool_calls == [self.ONE]

    @pytest.mark.parametrize("arguments", ["", "  ", None, {}])
    def test_no_arguments(self, arguments):
        assert ToolCall.model_validate({"name": "f", "arguments": arguments}).args == {}

    @pytest.mark.parametrize(
        "bad",
        [
            *("text", 3, [{"name": 3}], [{}], {"tool_calls": 3}, [{"args": {}}]),
            *([{"name": "f", "arguments": "{"}], [{"name": "f", "arguments": "[1]"}]),
            *([{"name": "f", "arguments": "[" * 100_000}], [{"name": "f", "arguments": '{"a": NaN}'}]),
        ],
    )
    def test_anything_else_is_a_validation_error(self, bad):
        with pytest.raises(ValidationError):
            ToolCalls.model_validate(bad)

    def test_there_and_back(self):
        calls = ToolCalls(tool_calls=[self.ONE])
        assert ToolCalls.model_validate(calls.model_dump(mode="json")) == calls
        assert ToolCalls.model_validate([self.ONE.model_dump()]) == calls
        assert ToolCalls.from_dict_list([self.ONE.model_dump()]) == calls
        assert ToolCalls.ToolCall is ToolCall
        assert (len(calls), bool(ToolCalls()), [*calls]) == (1, False, [self.ONE])

    def test_they_may_carry_their_results(self):
        calls = ToolCalls(tool_calls=[{"name": "add", "args": {}, "id": "c"}])
        results = ToolCallResults.from_tool_calls_and_values(calls, [3])
        both = ToolCalls(tool_calls=calls.tool_calls, tool_call_results=results)
        assert both == calls.model_copy(update={"tool_call_results": results}) != calls
        assert ToolCalls.model_validate_json(both.model_dump_json()) == both
        assert both.format() == calls.format() == {"tool_calls": [{"name": "add", "args": {}}]}
        assert "results" not in json.dumps(ToolCalls.model_json_schema())

    def test_what_fails_is_said_with_the_tool(self):
        def divide(by: int) -> float:
            return 1 / by

        async def later(by: int) -> float:
            return divide(by)

        with pytest.raises(RuntimeError, match="tool 'divide'") as failed:
            ToolCall(name="divide", args={"by": 0}).execute([divide])
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        with pytest.raises(RuntimeError, match=r"tool 'divide': .*misses the argument `by`"):
            ToolCall(name="divide").execute([divide])
        with pytest.raises(RuntimeError, match="tool 'later'"):
            asyncio.run(ToolCall(name="later", args={"by": 0}).aexecute([later]))

    def test_execute_with_functions_as_dspy_takes_them(self):
        call = ToolCall(name="double", args={"n": 2})

        def double(n: int) -> int:
            return 2 * n

        assert call.execute([double]) == call.execute({"double": double}) == call.execute([Tool(double)]) == 4
        for functions in (None, [], {"other": double}, {"other": 3}):
            with pytest.raises(ValueError, match="Tool function 'double' not found"):
                call.execute(functions)

    def test_execute(self):
        call = ToolCall(name="weather", args={"where": {"city": "Ulm"}})
        assert call.execute([Tool(weather)]) == call.execute({"weather": weather}) == "Ulm celsius 1"
        assert asyncio.run(call.aexecute([Tool(weather)])) == "Ulm celsius 1"
        with pytest.raises(ValueError, match=r"no tool `weather`; did you mean 'weathr'"):
            call.execute({"weathr": weather})

    def test_results(self):
        results = ToolCallResults.from_tool_calls_and_values(
            [self.ONE, self.ONE], ["a", {"b": 1}], [True, False]
        )
        assert [each.text() for each in results.tool_call_results] == ["a", '{"b": 1}']
        assert [each.is_error for each in results.tool_call_results] == [True, False]
        assert ToolCallResults.model_validate(results.model_dump(mode="json")) == results
        assert ToolCallResults.model_validate([{"name": "f", "value": 1}]).tool_call_results[0].value == 1
        with pytest.raises(ValueError, match="1 calls have 2 values"):
            ToolCallResults.from_tool_calls_and_values([self.ONE], [1, 2])


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["Args:", "  a: b", "    c", "x: y", "", " Returns:"])).map("\n".join)
)
def test_any_docstring_can_be_read(doc):
    for name, words in described_arguments(doc).items():
        assert name.isidentifier() or name.isalnum() or "_" in name
        assert words == words.strip() != ""


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=2)
            | st.dictionaries(
                st.sampled_from(["name", "args", "arguments", "function", "tool_calls", "id", "type"]),
                x,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_data_are_calls_or_a_validation_error(data):
    try:
        calls = ToolCalls.model_validate(data)
    except ValidationError:
        return
    assert ToolCalls.model_validate(json.loads(calls.model_dump_json())) == calls


KINDS = (
    int,
    str,
    float,
    bool,
    list[int],
    dict[str, int],
    int | None,
    int | str,
    Literal["a", 1],
    Where,
    Node,
)
KINDS += (Unit, list[Where], Annotated[int, Field(ge=1)], tuple[int, str], set[int], Any)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("1"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["city", "value", "children", "a", "zip"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    kind=st.sampled_from(KINDS),
    given=st.dictionaries(st.sampled_from(["first", "second", "self", "odd"]), JSON, max_size=3),
    more=st.booleans(),
)
def test_whatever_a_model_sends_fits_the_types_or_is_a_value_error(kind, given, more):
    called = []

    def closed(first, second=None):
        called.append((first, second))

    def opened(first, second=None, **further):
        called.append((first, second))

    try:
        Tool(opened if more else closed, name="f", arg_types={"first": kind, "second": kind})(**given)
    except ValueError:
        assert not called
        return
    assert "first" in given
    assert more or set(given) <= {"first", "second"}
    for name, value in zip(("first", "second"), called[0], strict=True):
        if name in given:
            TypeAdapter(kind).validate_python(value, strict=True)


def test_literal_arguments():
    def f(mode: Literal["a", "b"]) -> str:
        return mode

    with pytest.raises(ValueError, match="mode"):
        Tool(f)(mode="c")


def test_calls_have_their_results_where_there_are_some():
    bare = ToolCalls(tool_calls=[{"name": "f", "args": {}, "id": "c"}])
    results = ToolCallResults.from_tool_calls_and_values(bare, [5])
    held = ToolCalls(tool_calls=bare.tool_calls, tool_call_results=results)
    assert bare.tool_call_results is None
    assert "tool_call_results" not in bare.model_dump()
    assert "tool_call_results" not in bare.format()
    assert ToolCalls.model_validate_json(held.model_dump_json()) == held
    assert list(ToolCalls.model_json_schema()["properties"]) == ["tool_calls"], "no model is asked for them"
