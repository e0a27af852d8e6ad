"""Run by pytest in an environment with mcp and langchain-core: their tools in calls, coroutines and flows."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import pytest
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, ToolException, tool
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from pydantic import BaseModel, Field

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.mcp_client import MCPConnectionError
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded
from dspy_stream.state import Store

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
PLENTY = Intensity(100, 1.0)


@asynccontextmanager
async def session():
    server = StdioServerParameters(command=SERVER[0], args=SERVER[1:])
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(stdio_client(server))
        made = await stack.enter_async_context(ClientSession(*streams))
        await made.initialize()
        yield made


async def tools_of(made, **options):
    listed = (await made.list_tools()).tools
    return {each.name: ds.Tool.from_mcp_tool(made, each, **options) for each in listed}


@contextmanager
def loop_elsewhere():
    """An event loop in a thread of its own, with a session that is open on it."""
    ready, found = threading.Event(), {}

    async def serve():
        async with session() as made:
            found.update(tools=await tools_of(made), session=made, loop=asyncio.get_running_loop())
            found["end"] = asyncio.Event()
            ready.set()
            await found["end"].wait()
        found["closed"].set()
        await found["last"].wait()

    found["closed"] = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    found["last"] = asyncio.Event()
    try:
        yield found
    finally:
        for each in ("end", "last"):
            found["loop"].call_soon_threadsafe(found[each].set)
        thread.join(60)


@pytest.fixture(scope="module")
def elsewhere():
    with loop_elsewhere() as found:
        yield found


@pytest.fixture(scope="module")
def client():
    with ds.MCPClient(SERVER, env={"TOKEN": "t"}, seconds=30, intensity=PLENTY) as made:
        yield made


def call(given, **arguments):
    with ds.context(allow_tool_async_sync_conversion=True):
        return given(**arguments)


def turn(name, **arguments):
    return {"next_thought": "t", "next_tool_name": name, "next_tool_args": arguments}


def adds(request):
    """An agent that adds 1 to the number that it is given."""
    text = request.messages[-1].content
    if "observation_1" in text:
        return {"reasoning": "r", "answer": text.partition("observation_0: ")[2].split()[0]}
    if "observation_0" in text:
        return turn("finish")
    return turn("add", a=int(text.partition("number ## ]]")[2].split()[0]))


def added(tools, count, capacity=64):
    rows = [{"number": number} for number in range(count)]
    agent = ds.ReAct("number -> answer: int", tools=tools)
    done = ds.Stream.from_iterable(rows).through(agent, capacity=capacity).to_list(lm=ScriptedLM(adds))
    return sorted(row["answer"] for row in done) == list(range(1, count + 1))


@contextmanager
def over_http():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with subprocess.Popen([*SERVER, str(port)], stderr=subprocess.PIPE) as server:
        try:
            while b"running" not in (line := server.stderr.readline()):
                assert line, "the server ended"
            yield f"http://127.0.0.1:{port}/mcp", server
        finally:
            server.kill()


class TestSessionsOfOnesOwn:
    def test_from_synchronous_code_and_other_loops(self, elsewhere):
        add = elsewhere["tools"]["add"]
        assert call(add, a=1, b="2") == "3"
        assert asyncio.run(add.acall(a=2)) == "3"

    def test_in_a_flow_whose_session_is_on_a_loop_of_another_thread(self, elsewhere):
        assert added([elsewhere["tools"]["add"]], 2000)

    def test_in_a_flow_that_the_sessions_own_loop_waits_for(self):
        async def main():
            async with session() as made:
                tools = await tools_of(made)
                return await asyncio.to_thread(added, [tools["add"]], 50)

        assert asyncio.run(main())

    def test_opened_inside_the_flow(self):
        class Opens(ds.Module):
            async def aforward(self, number):
                async with session() as made:
                    tools = await tools_of(made)
                    return ds.Prediction(answer=await tools["add"].acall(a=number))

        done = ds.Stream.from_iterable([{"number": 1}, {"number": 2}]).through(Opens()).to_list()
        assert sorted(row["answer"] for row in done) == ["2", "3"]

    def test_an_agent_on_the_sessions_own_loop(self):
        async def main():
            async with session() as made:
                agent = ds.ReAct("number -> answer: int", tools=[(await tools_of(made))["add"]])
                agent.set_lm(ScriptedLM(adds))
                return (await agent.acall(number=4)).answer

        assert asyncio.run(main()) == 5

    def test_a_loop_that_its_own_thread_blocks_is_told_of(self, monkeypatch):
        monkeypatch.setattr("dspy_stream.program.types.elsewhere._BLOCKED", 1.0)

        async def main():
            async with session() as made:
                add = (await tools_of(made))["add"]
                with pytest.raises(
                    ConfigurationError, match=r"has not moved .* asyncio.to_thread\(flow.run\)"
                ):
                    added([add], 1)

        asyncio.run(main())

    def test_a_loop_that_has_ended_is_told_of(self):
        async def main():
            async with session() as made:
                return (await tools_of(made))["add"]

        add = asyncio.run(main())
        with pytest.raises(ConfigurationError, match="does not run any more"):
            call(add, a=1)
        with pytest.raises(ConfigurationError, match="does not run any more"):
            added([add], 3)  # and not an observation for a model to be asked about

    def test_a_session_that_was_closed_is_told_of(self):
        with loop_elsewhere() as found:
            found["loop"].call_soon_threadsafe(found["end"].set)
            assert found["closed"].wait(60)
            with pytest.raises(ConfigurationError, match="the MCP session of tool `add` is closed"):
                call(found["tools"]["add"], a=1)

    def test_a_loop_that_ends_during_a_call_is_told_of(self):
        begun, found = threading.Event(), []

        async def main():
            async with session() as made:
                found.append(await tools_of(made))
                begun.set()
                await gone.wait()

        async def wait():
            task = asyncio.ensure_future(found[0]["slow"].acall(seconds=60))
            await asyncio.sleep(0)
            own.call_soon_threadsafe(gone.set)
            return await task

        own, gone = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=own.run_until_complete, args=(main(),))
        thread.start()
        assert begun.wait(60)
        with pytest.raises(ConfigurationError, match=r"does not run any more|is closed"):
            asyncio.run(wait())
        thread.join(60)
        own.run_until_complete(own.shutdown_asyncgens())
        own.close()

    def test_a_session_of_nobody_knows_where_is_refused(self, elsewhere):
        described = asyncio.run_coroutine_threadsafe(elsewhere["session"].list_tools(), elsewhere["loop"])
        add = next(each for each in described.result(60).tools if each.name == "add")
        with pytest.raises(ConfigurationError, match=r"nobody knows on which event loop .* loop=\.\.\."):
            call(ds.Tool.from_mcp_tool(elsewhere["session"], add), a=1)
        given = ds.Tool.from_mcp_tool(elsewhere["session"], add, loop=elsewhere["loop"])
        assert call(given, a=1) == "2"

    def test_a_fork_does_not_have_it(self, elsewhere):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            said = "nothing"
            try:
                asyncio.run(elsewhere["tools"]["add"].acall(a=1))
            except Exception as error:  # noqa: BLE001 - told to the parent
                said = f"{type(error).__name__}: {error}"
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as answer:
            assert "belongs to another process" in answer.read()

    def test_a_server_that_dies_is_told_of(self):
        async def main():
            async with session() as made:
                tools = await tools_of(made)
                for each, given in (("die", {}), ("add", {"a": 1})):
                    with pytest.raises(
                        ConfigurationError, match=f"the MCP session of tool `{each}` is closed"
                    ):
                        await tools[each].acall(**given)

        asyncio.run(main())


class TestResults:
    @pytest.mark.parametrize(
        ("name", "arguments", "text", "structured"),
        [
            ("add", {"a": "1"}, "2", {"result": 2}),
            ("several", {}, ["a", "b"], ["a", "b"]),
            ("nothing", {}, [], []),
        ],
    )
    def test_text_and_structured(self, client, name, arguments, text, structured):
        for mode, expected in (("text", text), ("structured", structured)):
            found = {each.name: each for each in client.tools(result_mode=mode)}
            assert call(found[name], **arguments) == expected

    def test_models_go_both_ways(self, client):
        found = {each.name: each for each in client.tools(result_mode="structured")}
        assert call(found["weather"], city="Rome", place={"lat": 3}) == {"city": "Rome", "degrees": 3.0}
        assert call(found["weather"], city="Rome", place='{"lat": 4}')["degrees"] == 4.0

    def test_failures(self, client):
        found = {each.name: each for each in client.tools()}
        with pytest.raises(RuntimeError, match="Failed to call a MCP tool: Error executing tool fails"):
            call(found["fails"], why="luck")
        with pytest.raises(ValueError, match="Arg a is invalid"):
            call(found["add"], a="one")
        with pytest.raises(ValueError, match="has no argument `c`"):
            call(found["add"], a=1, c=1)

    def test_pictures_are_named_in_prompts_and_written_to_files(self, client, tmp_path):
        lm = ScriptedLM([turn("picture"), turn("finish"), {"reasoning": "r", "answer": "a"}])
        agent = ds.ReAct("question -> answer", tools=client.tools())
        flow = ds.Stream.from_iterable([{"question": "q"}], name="p").through(agent)
        flow.write(str(tmp_path / "out.jsonl")).run(lm=lm, state=str(tmp_path / "s"), quiet=True)
        shown = lm.calls[1].messages[-1].content
        assert "(image/png)" in shown
        assert "iVBORw" not in shown
        row = json.loads((tmp_path / "out.jsonl").read_text())
        assert row["trajectory"]["observation_0"][0]["data"] == "iVBORw=="


class TestClient:
    def test_everywhere(self, client):
        add = next(each for each in client.tools() if each.name == "add")
        assert call(add, a=1) == "2"
        assert asyncio.run(add.acall(a=2)) == "3"
        assert [each.name for each in asyncio.run(client.atools())] == [each.name for each in client.tools()]
        assert added([add], 2000)

    def test_a_command_has_no_more_of_the_environment_than_is_named(self, client, monkeypatch):
        monkeypatch.setenv("SECRET", "s")
        with ds.MCPClient(SERVER, env={"TOKEN": "t"}) as made:
            process = next(each for each in made.tools() if each.name == "process")
            assert call(process).split()[1:] == ["t", "-"]

    def test_where_the_server_dies_its_calls_fail_and_the_next_opens_it_again(self, client):
        found = {each.name: each for each in client.tools()}
        first = call(found["process"]).split()[0]
        with pytest.raises(ds.MCPConnectionError, match="was gone before it gave tool `die`"):
            call(found["die"])
        second = call(found["process"]).split()[0]
        assert first != second
        os.kill(int(second), signal.SIGKILL)
        assert second not in {_until_answered(found["process"]) for _ in range(3)}

    def test_a_call_that_takes_too_long_does_not_end_the_others(self):
        with ds.MCPClient(SERVER, seconds=30) as made:
            found = {each.name: each for each in made.tools()}
            first = call(found["process"])
            made._seconds = 0.5
            with pytest.raises(ds.MCPConnectionError, match=r"did not give tool `slow` within 0\.5 s"):
                call(found["slow"], seconds=60)
            made._seconds = 30
            assert call(found["process"]) == first

    def test_a_server_that_dies_again_and_again_stops_the_flow(self):
        lm = ScriptedLM(lambda request: turn("die"))
        with ds.MCPClient(SERVER, intensity=Intensity(1, 60.0)) as made:
            agent = ds.ReAct("number -> answer", tools=made.tools())
            flow = ds.Stream.from_iterable([{"number": 1}]).through(agent)
            with pytest.raises(RestartsExceeded, match=r"the MCP server .* failed"):
                flow.to_list(lm=lm)

    @pytest.mark.parametrize("command", ["no-such-program-at-all", "false"])
    def test_a_command_that_is_no_server(self, command):
        with (
            ds.MCPClient([command], intensity=Intensity(1, 60.0), seconds=20) as made,
            pytest.raises(RestartsExceeded, match=command),
        ):
            made.tools()

    def test_one_that_never_answers_is_waited_for_once_and_ended(self, tmp_path):
        pid = tmp_path / "pid"
        code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        with (
            ds.MCPClient([sys.executable, "-c", code], seconds=3) as made,
            pytest.raises(MCPConnectionError, match="could not be opened within 3 s"),
        ):
            made.tools()
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    def test_over_http(self):
        with over_http() as (url, server), ds.MCPClient(url, seconds=30, headers={"X-Key": "k"}) as made:
            found = {each.name: each for each in made.tools()}
            assert call(found["add"], a=1) == "2"
            assert added([found["add"]], 200)
            server.kill()
            server.wait()
            made._seconds = 2
            with pytest.raises((ds.MCPConnectionError, RestartsExceeded)):
                call(found["add"], a=1)

    def test_nothing_is_left_of_the_command(self):
        with ds.MCPClient(SERVER) as made:
            process = int(call({each.name: each for each in made.tools()}["process"]).split()[0])
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    def test_agents_in_worker_processes_open_their_own(self, tmp_path):
        flow = tmp_path / "workers.py"
        flow.write_text(
            "import sys, dspy_stream as ds\n"
            "from dspy_stream.lm.scripted import ScriptedLM\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from in_tools import SERVER, adds\n"
            "def make():\n"
            "    return ds.ReAct('number -> answer: int', tools=ds.MCPClient(SERVER).tools())\n"
            "if __name__ == '__main__':\n"
            "    stream = ds.Stream.from_iterable([{'number': n} for n in range(20)])\n"
            "    stream = stream.through(make(), isolation='process', factory=make)\n"
            "    done = stream.to_list(lm=ScriptedLM(adds))\n"
            "    print(sorted(row['answer'] for row in done) == list(range(1, 21)))\n"
        )
        done = subprocess.run(
            [sys.executable, str(flow)], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.stdout.strip() == "True", done.stderr[-3000:]


class TestKilled:
    def test_rows_go_on_and_finished_calls_are_not_made_again(self, tmp_path):
        rows, log = 120, tmp_path / "calls"
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"number": n}) + "\n" for n in range(rows)))
        log.touch()
        command = [sys.executable, __file__, str(tmp_path)]
        due = {}
        for kill in (60, 200):
            with subprocess.Popen(command) as process:
                while len(log.read_text().split()) < kill:
                    assert process.poll() is None, "it ended before it was killed"
                    threading.Event().wait(0.01)
                process.kill()
            calls = Counter(log.read_text().split())
            with Store.open(tmp_path / "s", read_only=True) as store:
                for key, _ in store.scan("journal"):
                    due.setdefault(key.hex(), calls[key.hex()])
        subprocess.run(command, check=True, timeout=80)
        out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert sorted(row["answer"] for row in out) == list(range(1, rows + 1))
        calls = Counter(log.read_text().split())
        assert len(due) > 60
        assert {key: calls[key] for key in due} == due


def killed(folder):
    """The flow of that test: an agent with a tool of a server of its own."""

    def answer(request):
        with (folder / "calls").open("a") as log:
            log.write(request.key().hex() + "\n")
        return adds(request)

    with ds.MCPClient(SERVER) as made:
        agent = ds.ReAct("number -> answer: int", tools=made.tools())
        flow = ds.Stream.read(str(folder / "in.jsonl"), name="killed").through(agent, capacity=8)
        lm = ScriptedLM(answer, cache=True, latency=0.02, record=False)
        flow.write(str(folder / "out.jsonl")).run(lm=lm, state=str(folder / "s"), quiet=True, epoch=0.2)


def _until_answered(process):
    """The server's process; a call that meets its end is made again."""
    while True:
        try:
            return call(process).split()[0]
        except ds.MCPConnectionError:
            continue


@tool
def double(n: int, times: int = 2) -> int:
    """Multiply."""
    return n * times


@tool
async def later(word: str) -> str:
    """A coroutine function."""
    await asyncio.sleep(0)
    return word.upper()


class Where(BaseModel):
    """A place."""

    city: str = Field(description="which")
    point: tuple[float, float] = (0.0, 0.0)


class Own(BaseTool):
    name: str = "own"
    description: str = "Of a class."
    args_schema: type = Where

    def _run(self, city, point=(0.0, 0.0)):
        return f"{city} {point}"


def found_at(where: Where, limit: Annotated[int, Field(ge=1)] = 3) -> str:
    """Look around."""
    return f"{where.city} {limit}"


@tool
def secret(question: str, user: Annotated[str, InjectedToolArg]) -> str:
    """With an argument that models do not see."""
    return f"{user} asks {question}"


@tool(response_format="content_and_artifact")
def with_artifact(n: int) -> tuple[str, list[int]]:
    """Text, and something beside it."""
    return f"{n} numbers", list(range(n))


@tool(return_direct=True)
def direct(n: int) -> str:
    """Its result is the answer."""
    return f"direct {n}"


@tool
def broken(n: int) -> str:
    """Never works."""
    raise ToolException("no luck")


class TestLangChain:
    @pytest.mark.parametrize(
        ("given", "arguments", "result"),
        [
            (double, {"n": "3"}, 6),
            (double, {"n": 3, "times": 5}, 15),
            (later, {"word": "a"}, "A"),
            (Own(), {"city": "Rome", "point": [1, 2]}, "Rome (1.0, 2.0)"),
            (Own(), {"city": "Rome"}, "Rome (0.0, 0.0)"),
            (StructuredTool.from_function(found_at), {"where": {"city": "Rome"}, "limit": 2}, "Rome 2"),
            (with_artifact, {"n": 2}, "2 numbers"),
            (direct, {"n": 2}, "direct 2"),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_results(self, given, arguments, result):
        made = ds.Tool.from_langchain(given)
        assert (made.name, made.desc) == (given.name, given.description)
        assert asyncio.run(made.acall(**arguments)) == result
        assert call(made, **arguments) == result

    @pytest.mark.parametrize(
        ("given", "arguments", "words"),
        [
            (double, {}, "misses the argument `n`"),
            (double, {"n": "many"}, "Arg n is invalid"),
            (double, {"n": 1, "m": 1}, "has no argument `m`"),
            (StructuredTool.from_function(found_at), {"where": {}}, "Arg where.city is invalid"),
            (StructuredTool.from_function(found_at), {"where": {"city": "x"}, "limit": 0}, "Arg limit"),
            (broken, {"n": 1}, "Failed to call LangChain tool broken: no luck"),
        ],
    )
    def test_what_is_wrong(self, given, arguments, words):
        with pytest.raises((ValueError, RuntimeError), match=words):
            asyncio.run(ds.Tool.from_langchain(given).acall(**arguments))

    def test_arguments_that_are_injected_are_not_shown(self):
        made = ds.Tool.from_langchain(secret)
        assert list(made.args) == ["question"]
        with pytest.raises(ValueError, match="has no argument `user`"):
            asyncio.run(made.acall(question="q", user="root"))
        with pytest.raises(RuntimeError, match="Failed to call LangChain tool secret"):
            asyncio.run(made.acall(question="q"))

    def test_in_a_flow(self):
        @tool
        async def add(a: int) -> int:
            """Add 1."""
            await asyncio.sleep(0)
            return a + 1

        assert added([ds.Tool.from_langchain(add)], 500)

    def test_arguments_described_by_a_schema(self):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        given = StructuredTool.from_function(
            func=lambda a: a + 1, name="plus", description="d", args_schema=schema
        )
        assert asyncio.run(ds.Tool.from_langchain(given).acall(a="1")) == 2


if __name__ == "__main__":
    killed(Path(sys.argv[1]))
