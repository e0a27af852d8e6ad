"""MCPClient without the library; with it, and real servers, in tests/interop/in_tools.py."""

import asyncio
import contextlib
import sys

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules import MCPClient
from dspy_stream.modules.mcp_client import MCPConnectionError
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded


@pytest.mark.parametrize(
    ("server", "options", "words"),
    [
        ("my-server --stdio", {}, "a command as a list"),
        ([], {}, "a command as a list"),
        (["a", 1], {}, "a command as a list"),
        (["a"], {"headers": {"a": "b"}}, "headers are for a URL"),
        ("https://x/mcp", {"env": {"a": "b"}}, "env is for a command"),
        (["a"], {"seconds": 0}, "seconds of an MCPClient is a number above 0"),
    ],
)
def test_what_is_neither_a_command_nor_a_url_is_refused(server, options, words):
    with pytest.raises(ConfigurationError, match=words):
        MCPClient(server, **options)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dspy_stream\[mcp\]'"):
        MCPClient(["my-server"]).tools()


def test_what_is_secret_in_a_url_is_not_shown():
    made = repr(
        MCPClient("https://user:word@x.test:8000/mcp?key=secret", headers={"Authorization": "Bearer t"})
    )
    assert made == "MCPClient('https://x.test:8000/mcp')"


def test_a_server_that_never_answers_is_waited_for_once_a_call_and_in_the_end_given_up():
    waiting = []

    @contextlib.asynccontextmanager
    async def never():
        waiting.append("in")
        try:
            yield await asyncio.Event().wait()
        finally:
            waiting.append("out")

    client = MCPClient(["a"], seconds=0.02, intensity=Intensity(restarts=2, seconds=0.01))
    client._connect = never
    for calls in (1, 2):
        with pytest.raises(MCPConnectionError, match=r"could not be opened within 0\.02 s; seconds="):
            client.tools()
        assert waiting.count("in") == calls
    with pytest.raises(RestartsExceeded, match="no answer within 0"):
        client.tools()
    client.close()
    assert waiting.count("out") == waiting.count("in")
