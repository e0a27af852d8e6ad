"""Tools of MCP servers and of LangChain: their arguments, results and failures."""

import asyncio
from types import SimpleNamespace as Made

import pytest
from pydantic import BaseModel, Field

from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.react import ReAct
from dspy_stream.program.types import Tool

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "default": 1},
        "place": {"$ref": "#/$defs/Place", "description": "exactly"},
        "any": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city"],
    "$defs": {
        "Place": {"type": "object", "properties": {"lat": {"$ref": "#/$defs/Number"}}},
        "Number": {"type": "number"},
    },
}


def text(words):
    return Made(type="text", text=words)


class Session:
    def __init__(self, **result):
        self.result = Made(**{"content": [text("sunny")], **result})
        self.calls = []

    async def call_tool(self, name, arguments=None):
        self.calls.append((name, arguments))
        return self.result


def described(**changes):
    return Made(**{"name": "weather", "description": "The weather.", "inputSchema": SCHEMA, **changes})


def call(tool, **arguments):
    return asyncio.run(tool.acall(**arguments))


class TestMCP:
    def test_it_is_described_by_the_server(self):
        tool = Tool.from_mcp_tool(Session(), described())
        assert (tool.name, tool.desc) == ("weather", "The weather.")
        schema = tool.parameters()
        assert schema["required"] == ["city"]
        assert schema["properties"]["city"] == {"type": "string", "description": "where"}
        assert schema["properties"]["place"]["properties"] == {"lat": {"type": "number"}}
        assert schema["properties"]["place"]["description"] == "exactly"
        assert "$defs" not in schema

    def test_the_server_is_asked_by_its_own_name(self):
        session = Session()
        tool = Tool.from_mcp_tool(session, described(name="geo.weather/v1"))
        assert tool.name == "geo_weather_v1"
        assert call(tool, city="Rome", days="2") == "sunny"
        assert session.calls == [("geo.weather/v1", {"city": "Rome", "days": 2})]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({}, "misses the argument `city`"),
            ({"city": "Rome", "town": "x"}, "has no argument `town`"),
            ({"city": "Rome", "days": "many"}, "Arg .* is invalid"),
        ],
    )
    def test_arguments_are_checked_before_anything_is_sent(self, arguments, words):
        session = Session()
        with pytest.raises(ValueError, match=words):
            call(Tool.from_mcp_tool(session, described()), **arguments)
        assert session.calls == []

    @pytest.mark.parametrize(
        ("result", "mode", "expected"),
        [
            ({}, "text", "sunny"),
            ({"content": [text("a"), text("b")]}, "text", ["a", "b"]),
            ({"content": [Made(type="image", data="x")]}, "text", [Made(type="image", data="x")]),
            ({"structuredContent": {"t": 20}}, "text", "sunny"),
            ({"structuredContent": {"t": 20}}, "structured", {"t": 20}),
            ({"structured_content": {"t": 20}}, "structured", {"t": 20}),
            ({}, "structured", "sunny"),
        ],
    )
    def test_results(self, result, mode, expected):
        tool = Tool.from_mcp_tool(Session(**result), described(), result_mode=mode)
        assert call(tool, city="Rome") == expected

    @pytest.mark.parametrize("failed", ["isError", "is_error"])
    def test_failures_of_the_server(self, failed):
        tool = Tool.from_mcp_tool(Session(**{failed: True}, content=[text("no such city")]), described())
        with pytest.raises(RuntimeError, match="Failed to call a MCP tool: no such city"):
            call(tool, city="Rome")

    def test_names_that_are_no_names_in_python(self):
        session = Session()
        schema = {
            "type": "object",
            "properties": {"user-id": {"type": "integer"}, "class": {"type": "string"}},
        }
        tool = Tool.from_mcp_tool(session, described(inputSchema=schema))
        assert call(tool, **{"user-id": "7", "class": "a"}) == "sunny"
        assert session.calls == [("weather", {"user-id": 7, "class": "a"})]

    def test_descriptions_that_cannot_be_used(self):
        with pytest.raises(ConfigurationError, match="no JSON schema of an object"):
            Tool.from_mcp_tool(Session(), described(inputSchema=[1]))
        with pytest.raises(ConfigurationError, match="refers to '#/x', which is not there"):
            Tool.from_mcp_tool(Session(), described(inputSchema={"properties": {"a": {"$ref": "#/x"}}}))
        around = {
            "properties": {"a": {"$ref": "#/$defs/A"}},
            "$defs": {"A": {"items": {"$ref": "#/$defs/A"}}},
        }
        with pytest.raises(ConfigurationError, match="refers to itself"):
            Tool.from_mcp_tool(Session(), described(inputSchema=around))
        with pytest.raises(ConfigurationError, match="result_mode is 'text' or 'structured'"):
            Tool.from_mcp_tool(Session(), described(), result_mode="json")

    def test_an_agent_uses_it(self):
        turns = [
            {"next_thought": "t", "next_tool_name": "weather", "next_tool_args": {"city": "Rome"}},
            {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "r", "answer": "sunny"},
        ]
        agent = ReAct("question -> answer", tools=[Tool.from_mcp_tool(Session(), described())])
        agent.set_lm(ScriptedLM(turns))
        assert asyncio.run(agent.acall(question="?")).trajectory["observation_0"] == "sunny"


class Arguments(BaseModel):
    x: int = Field(description="the first")
    y: int = 2
    z: list[int] = Field(default_factory=list)


class Adds:
    name, description, args_schema = "add", "Add numbers.", Arguments

    async def ainvoke(self, arguments):
        return arguments["x"] + arguments.get("y", 2)


class TestLangChain:
    def test_arguments_and_results(self):
        tool = Tool.from_langchain(Adds())
        assert (tool.name, tool.desc) == ("add", "Add numbers.")
        assert tool.parameters()["required"] == ["x"]
        assert tool.args["x"] == {"description": "the first", "type": "integer"}
        assert tool.args["y"] == {"default": 2, "type": "integer"}
        assert tool.args["z"]["type"] == "array"
        assert call(tool, x="1") == 3
        assert call(tool, x=1, y=5) == 6
        with pytest.raises(ValueError, match="misses the argument `x`"):
            call(tool)

    def test_failures(self):
        class Fails(Adds):
            async def ainvoke(self, arguments):
                raise KeyError("gone")

        with pytest.raises(RuntimeError, match="Failed to call LangChain tool add: 'gone'"):
            call(Tool.from_langchain(Fails()), x=1)

    def test_a_schema_instead_of_a_model(self):
        class Plain(Adds):
            args_schema = SCHEMA

            async def ainvoke(self, arguments):
                return arguments

        assert call(Tool.from_langchain(Plain()), city="Rome") == {"city": "Rome"}
        with pytest.raises(ConfigurationError, match="no JSON schema"):
            Tool.from_langchain(type("None_", (Adds,), {"args_schema": None})())
