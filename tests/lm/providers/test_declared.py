"""Which provider a name belongs to, where it is, how it is asked; and providers of the user's own."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

import dspy_stream.lm.providers as providers
from dspy_stream.errors import LMAuthError, LMConfigurationError, LMError
from dspy_stream.lm import LM
from dspy_stream.lm.capabilities import capabilities_of
from dspy_stream.lm.providers import PROVIDERS, Provider, find, locate, register_provider
from dspy_stream.lm.providers.anthropic import Messages
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.runtime import LISTENER
from dspy_stream.types import Capabilities, Delta, Head, Message, Request, Response
from tests.lm.providers import answers
from tests.lm.server import ModelServer, Reply, completion

CANARY = "sk-CANARY-0123456789"


@pytest.fixture(autouse=True)
def _a_registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS.values():
        for name in (*provider.base_env, *provider.key_env, "AZURE_API_VERSION"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(providers, "_registered", {})


@pytest.mark.parametrize(
    ("model", "variable", "url"),
    [
        ("openai/gpt-4o", "OPENAI_API_KEY", "https://api.openai.com/v1/chat/completions"),
        ("anthropic/claude-haiku-4-5", "ANTHROPIC_API_KEY", "https://api.anthropic.com/v1/messages"),
        (
            "gemini/gemini-2.5-flash",
            "GOOGLE_API_KEY",
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent",
        ),
        ("openrouter/openai/gpt-4o", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1/chat/completions"),
        ("groq/llama-3", "GROQ_API_KEY", "https://api.groq.com/openai/v1/chat/completions"),
        ("deepseek/deepseek-chat", "DEEPSEEK_API_KEY", "https://api.deepseek.com/chat/completions"),
        ("xai/grok-3", "XAI_API_KEY", "https://api.x.ai/v1/chat/completions"),
        ("mistral/mistral-large-latest", "MISTRAL_API_KEY", "https://api.mistral.ai/v1/chat/completions"),
        ("together_ai/a/b", "TOGETHERAI_API_KEY", "https://api.together.xyz/v1/chat/completions"),
        ("fireworks_ai/m", "FIREWORKS_API_KEY", "https://api.fireworks.ai/inference/v1/chat/completions"),
        ("perplexity/sonar", "PERPLEXITYAI_API_KEY", "https://api.perplexity.ai/chat/completions"),
    ],
)
def test_hosted_models(model: str, variable: str, url: str) -> None:
    with pytest.raises(LMConfigurationError, match=r"no API key; set [A-Z_]+_API_KEY"):
        locate(model, environ={})
    target = locate(model, environ={variable: CANARY})
    format = target.make(target.model, now=lambda: 0.0)
    assert target.address.join(format.path) == url
    assert target.key is not None
    assert CANARY not in f"{target} {target.key}"
    assert CANARY in str(format.headers(target.key.reveal(target.address.origin)))


@pytest.mark.parametrize(
    ("model", "base", "url"),
    [
        ("ollama_chat/llama3", "http://gpu:11434", "http://gpu:11434/v1/chat/completions"),
        ("ollama/llama3", "http://gpu:11434/v1/", "http://gpu:11434/v1/chat/completions"),
        ("anthropic/m", "https://proxy.example/anthropic", "https://proxy.example/anthropic/v1/messages"),
        ("anthropic/m", "https://proxy.example/v1", "https://proxy.example/v1/messages"),
        ("gemini/m", "https://p.example/v1beta", "https://p.example/v1beta/models/m:generateContent"),
        ("org/m", "https://p.example/api", "https://p.example/api/chat/completions"),
    ],
)
def test_an_address_gets_the_version_it_lacks(model: str, base: str, url: str) -> None:
    target = locate(model, api_base=base, has_key=True, environ={})
    assert target.address.join(target.make(target.model, now=lambda: 0.0).path) == url


def test_azure_is_found_by_its_deployment_and_version() -> None:
    environ = {"AZURE_API_BASE": "https://x.openai.azure.com/", "AZURE_API_KEY": CANARY}
    target = locate("azure/our-gpt", environ=environ, options={"api_version": "2024-10-21"})
    format = target.make(target.model, now=lambda: 0.0)
    assert target.address.join(format.path) == (
        "https://x.openai.azure.com/openai/deployments/our-gpt/chat/completions?api-version=2024-10-21"
    )
    assert format.headers(CANARY)["api-key"] == CANARY
    assert "Authorization" not in format.headers(CANARY)
    assert b"api_version" not in format.encode(Request.of("azure/our-gpt", "hi", api_version="2024-10-21"))
    target = locate("azure/m", environ={**environ, "AZURE_API_VERSION": "v9"}, model_type="responses")
    format = target.make(target.model, now=lambda: 0.0)
    assert target.address.join(format.path) == "https://x.openai.azure.com/openai/responses?api-version=v9"
    assert format.headers(CANARY)["api-key"] == CANARY
    with pytest.raises(LMConfigurationError, match="api-version"):
        locate("azure/m", environ=environ, options={"api_version": "1&key=2"})
    with pytest.raises(LMConfigurationError, match="AZURE_API_BASE"):
        locate("azure/m", environ={})


def test_a_query_of_the_address_and_one_of_the_path_are_joined() -> None:
    target = locate("gemini/m", api_base="https://p.example/v1beta?tenant=a", has_key=True, environ={})
    path = target.make("m", now=lambda: 0.0).stream_path
    assert path is not None
    assert target.address.join(path) == (
        "https://p.example/v1beta/models/m:streamGenerateContent?alt=sse&tenant=a"
    )


def test_the_format_is_that_of_the_model_type() -> None:
    for name, kind in (("openai/responses/gpt-5", "chat"), ("openai/gpt-5", "responses")):
        target = locate(name, has_key=True, environ={}, model_type=kind)
        assert (target.model, target.make("x", now=lambda: 0.0).path) == ("gpt-5", "/responses")
    assert LM("openai/davinci-002", model_type="text").model_type == "text"
    with pytest.raises(LMConfigurationError, match="model_type is one of 'chat', and not 'responses'"):
        LM("anthropic/claude-haiku-4-5", model_type="responses")
    lm = LM("openai/gpt-5", model_type="responses")
    assert lm.identity()["model_type"] == lm.dump_state()["model_type"] == "responses"
    assert lm != LM("openai/gpt-5")
    assert LM.load_state(lm.dump_state()) == lm == lm.copy()


@pytest.mark.parametrize(
    ("model", "guess"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("claude-haiku-4-5", "anthropic/claude-haiku-4-5"),
        ("gemini-2.5-pro", "gemini/gem"),
        ("opnai/gpt-4o", "openai/gpt-4o"),
    ],
)
def test_a_bare_name_or_a_slip_is_guessed(model: str, guess: str) -> None:
    with pytest.raises(LMConfigurationError, match=f"did you mean '{guess}"):
        find(model)


# --------------------------------------------------------------------------------- the user's own


def test_a_provider_of_one_s_own() -> None:
    able = Capabilities(tools=True)
    acme = Provider(
        "acme",
        Messages,
        "https://llm.acme.example",
        key_env="ACME_KEY",
        needs_key=True,
        root="/v1",
        capabilities=able,
    )
    assert register_provider(acme) is register_provider(acme) is acme
    target = locate("acme/large", environ={"ACME_KEY": CANARY})
    assert (
        target.address.join(target.make("large", now=lambda: 0.0).path)
        == "https://llm.acme.example/v1/messages"
    )
    assert capabilities_of("acme/large") == able
    with pytest.raises(LMConfigurationError, match="ACME_KEY"):
        locate("acme/large", environ={})
    with pytest.raises(LMConfigurationError, match="acme/, local/"):
        find("nosuch/model")


def test_what_is_taken_is_replaced_only_on_purpose() -> None:
    mine = Provider("openai", base="https://gateway.example/v1")
    with pytest.raises(LMConfigurationError, match="replace=True"):
        register_provider(mine)
    with pytest.raises(LMConfigurationError, match="replace=True"):
        register_provider(Provider("ollama_chat"))
    register_provider(mine, replace=True)
    assert locate("openai/m", environ={}).address.url == "https://gateway.example/v1"
    for prefix in ("local", "No", "a/b", ""):
        with pytest.raises(LMConfigurationError):
            register_provider(Provider(prefix), replace=True)


def test_many_threads_may_register_at_once() -> None:
    names = [f"p{number}" for number in range(64)]
    threads = [threading.Thread(target=register_provider, args=(Provider(name),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [find(f"{name}/m")[0].prefix for name in names] == names


# ------------------------------------------------------------------------------ over a real socket


def served(model: str, reply: Reply, **settings: Any) -> tuple[Response | Exception, bytes]:
    async def run() -> tuple[Response | Exception, bytes]:
        async with ModelServer(reply) as server:
            lm = LM(
                model, api_base=f"http://127.0.0.1:{server.port}", api_key=CANARY, num_retries=0, **settings
            )
            layer = lm.connect()
            try:
                answer: Response | Exception = await layer(lm.request("hi"))
            except LMError as error:
                answer = error
            await layer.aclose()
            return answer, server.seen[0].head + server.seen[0].body

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("model", "settings", "body", "line", "header"),
    [
        ("anthropic/m", {}, answers.message(), b"POST /v1/messages HTTP", b"x-api-key: "),
        (
            "gemini/m",
            {},
            answers.generated(),
            b"POST /v1beta/models/m:generateContent HTTP",
            b"x-goog-api-key: ",
        ),
        (
            "azure/m",
            {"api_version": "2024-10-21"},
            json.loads(completion()),
            b"POST /openai/deployments/m/chat/completions?api-version=2024-10-21 HTTP",
            b"api-key: ",
        ),
        (
            "openai/m",
            {"model_type": "responses"},
            answers.response(),
            b"POST /responses HTTP",
            b"authorization: bearer ",
        ),
    ],
)
def test_each_format_goes_where_it_should(
    model: str, settings: dict[str, Any], body: Any, line: bytes, header: bytes
) -> None:
    answer, seen = served(model, Reply(body=json.dumps(body).encode()), **settings)
    assert isinstance(answer, Response)
    assert answer.text.startswith("Paris")
    assert seen.startswith(line)
    assert header + CANARY.lower().encode() in seen.lower()
    assert CANARY.encode() not in seen.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("model", "settings", "events", "line"),
    [
        ("hosted_vllm/m", {}, answers.chat_events(3), b"POST /v1/chat/completions HTTP"),
        ("openai/m", {"model_type": "responses"}, answers.response_events(3), b"POST /responses HTTP"),
        ("anthropic/m", {}, answers.message_events(3), b"POST /v1/messages HTTP"),
        (
            "gemini/m",
            {},
            answers.generated_events(3),
            b"POST /v1beta/models/m:streamGenerateContent?alt=sse HTTP",
        ),
    ],
)
def test_each_format_streams(
    model: str, settings: dict[str, Any], events: list[tuple[str, bytes]], line: bytes
) -> None:
    body = b"".join([b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in events])
    reply = Reply(body, headers=(("Content-Type", "text/event-stream"),), framing="chunked", pieces=37)
    told: list[Delta] = []
    token = LISTENER.set(told.append)
    try:
        answer, seen = served(model, reply, **settings)
    finally:
        LISTENER.reset(token)
    assert isinstance(answer, Response)
    assert "".join([delta.text for delta in told if (delta.kind, delta.choice) == ("text", 0)]) == answer.text
    assert seen.startswith(line)
    assert b"accept: text/event-stream" in seen.lower()


def test_a_key_that_is_sent_back_is_not_shown() -> None:
    body = {
        "type": "error",
        "error": {"type": "authentication_error", "message": f"invalid x-api-key {CANARY}"},
    }
    error, _ = served("anthropic/m", Reply(status=401, body=json.dumps(body).encode()))
    assert isinstance(error, LMAuthError)
    assert (error.provider, error.provider_code) == ("anthropic", "authentication_error")
    assert CANARY not in f"{error} {error!r} {vars(error)}"


@pytest.mark.parametrize("model", ["ollama/llama3", "ollama_chat/llama3"])
def test_what_ollama_would_leave_aside_without_a_word_is_refused(model: str) -> None:
    lm = LM(model, api_base="http://127.0.0.1:9", num_ctx=32768)
    with pytest.raises(LMConfigurationError, match=r"num_ctx.*on the server"):
        lm("hi")


@pytest.mark.parametrize(
    "ending", ["chat/completions", "responses", "messages", "completions/", "embeddings?a=b"]
)
def test_an_address_of_an_endpoint_is_refused_by_the_name_of_its_setting(ending: str) -> None:
    base = f"https://llm.example/v1/{ending}"
    says = "{} ends in /" + ending.partition("?")[0].rstrip("/") + ", which is added to it"
    with pytest.raises(LMConfigurationError, match=says.format("api_base")):
        LM("openai/gpt-4o", api_base=base, api_key=CANARY)
    with pytest.raises(LMConfigurationError, match=says.format("OPENAI_BASE_URL")):
        locate("openai/gpt-4o", has_key=True, environ={"OPENAI_BASE_URL": base})
    assert locate("openai/messages", api_base="https://llm.example/messages/v1", has_key=True).address.url


MARK = {"type": "ephemeral"}
MARKED = Message("user", ({"type": "text", "text": "hi", "cache_control": MARK},))
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.mark.parametrize(
    ("model", "base", "strict"),
    [
        ("openai/gpt-4o", None, True),
        ("openai/gpt-4o", "https://api.openai.com/v1/", True),
        ("azure/gpt-4o", "https://own.example", True),
        ("openai/claude", "https://proxy.example/v1", False),  # only named as OpenAI's
        ("openrouter/anthropic/claude", None, False),
    ],
)
def test_what_openai_refuses_and_others_take(model: str, base: str | None, strict: bool) -> None:
    target = locate(model, api_base=base, has_key=True, environ={})
    format = target.make(target.model, now=lambda: 0.0)
    request = Request(Head(model, (MARKED,), {"tools": [{**LOOK, "cache_control": MARK}]}), (MARKED,))
    # What was written for one server must not be kept for another: they share the head.
    assert b"cache_control" in ChatCompletions(target.model).encode(request)
    assert format.encode(request).count(b"cache_control") == (0 if strict else 3)
    stops = Request.of(model, "hi", stop=list("abcde"))
    if strict:
        with pytest.raises(LMConfigurationError, match=r"'stop' has 5 texts, and \w+ takes at most 4"):
            format.encode(stops)
        stops = Request.of(model, "hi", stop=list("abcd"))
    assert b'"stop":["a"' in format.encode(stops)


def test_files_in_the_form_of_mistral_and_what_anthropic_wants_to_hear_of_them() -> None:
    data = "data:application/pdf;base64,JVBERg=="
    files = [{"file_data": data, "filename": "a.pdf"}, {"file_data": data}, {"file_id": "f-1"}]
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "Read"},
        *({"type": "file", "file": file} for file in files),
        {"type": "image_url", "image_url": {"url": "https://h.example/a.png"}},
    ]
    target = locate("mistral/mistral-small-latest", has_key=True, environ={})
    format = target.make(target.model, now=lambda: 0.0)
    body = json.loads(format.encode(Request.of("mistral/m", (Message("user", content),))))
    assert body["messages"][0]["content"] == [
        content[0],
        {"type": "document_url", "document_url": data, "document_name": "a.pdf"},
        {"type": "document_url", "document_url": data},
        {"type": "file", "file_id": "f-1"},
        content[-1],
    ]
    assert Messages("claude-haiku-4-5").headers(None)["anthropic-beta"] == "files-api-2025-04-14"


def test_a_key_that_a_server_repeats_in_its_headers_is_masked() -> None:
    said = (("x-request-id", f"for {CANARY}"),)
    replies = [Reply(completion("yes"), headers=said), Reply(b'{"error": "no"}', status=400, headers=said)]

    async def ask() -> None:
        async with ModelServer(*replies) as server:
            layer = LM("acme/m", api_base=server.url, api_key=CANARY, num_retries=0).connect()
            assert (await layer(Request.of("acme/m", "q"))).request_id == "for ***"
            with pytest.raises(LMError) as refused:
                await layer(Request.of("acme/m", "r"))
            assert refused.value.request_id == "for ***"

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("base", "chat", "responses"),
    [
        (
            "/openai",
            "/openai/deployments/d/chat/completions?api-version=v9",
            "/openai/responses?api-version=v9",
        ),
        (
            "/gate/openai/deployments/d?api-version=v8",
            "/gate/openai/deployments/d/chat/completions?api-version=v8",
            "/gate/openai/responses?api-version=v8",
        ),
        (
            "/openai/deployments/d/chat/completions",
            "/openai/deployments/d/chat/completions?api-version=v9",
            None,
        ),
        ("/openai/v1/", "/openai/v1/chat/completions", "/openai/v1/responses"),
        (
            "/openai/v1?api-version=preview",
            "/openai/v1/chat/completions?api-version=preview",
            "/openai/v1/responses?api-version=preview",
        ),
    ],
)
def test_addresses_of_azure_as_its_portal_shows_them(base: str, chat: str, responses: str | None) -> None:
    host = "https://x.openai.azure.com"
    environ = {"AZURE_API_BASE": host + base, "AZURE_API_KEY": CANARY, "AZURE_API_VERSION": "v9"}
    for kind, path in (("chat", chat), ("responses", responses)):
        target = locate("azure/d", environ=environ, model_type=kind)
        format = target.make(target.model, now=lambda: 0.0)
        assert path is None or target.address.join(format.path) == host + path
        assert format.headers("k")["api-key"] == "k"
        assert json.loads(format.encode(Request.of("azure/d", "hi")))["model"] == "d"
