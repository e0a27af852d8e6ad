"""MCPClient without the library; with it, and real servers, in tests/interop/in_tools.py."""

import sys

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules import MCPClient


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
