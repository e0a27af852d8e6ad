"""The user's LM: names, keys, addresses, copies, saved forms, and the two doors."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from dspy_stream.errors import LMConfigurationError, LMError, LMNotConfiguredError
from dspy_stream.lm import LM, BaseLM, LocalLM, Model, Price, ScriptedLM, resolve
from dspy_stream.lm.address import parse
from dspy_stream.lm.backends import Backend
from dspy_stream.lm.base import SavedLM
from dspy_stream.lm.client import Client
from dspy_stream.lm.limit import Limits
from dspy_stream.lm.providers import locate
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.lm.secret import Secret
from dspy_stream.lm.transport import Endpoint, FakeTransport
from dspy_stream.types import Request
from tests.lm.server import completion

CANARY = "sk-CANARY-0123456789"
KEYS = ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "HOSTED_VLLM_API_BASE", "OLLAMA_API_BASE")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------ names and addresses


@pytest.mark.parametrize("name", ["nosuch/model", "gpt-4o", "", "openai/", "/x", "scripted/x", "local/other"])
def test_an_unknown_model_is_refused_when_it_is_named(name: str) -> None:
    with pytest.raises(LMConfigurationError):
        LM(name)


def test_the_error_lists_the_providers_and_guesses() -> None:
    with pytest.raises(LMConfigurationError, match=r"openai/, anthropic/, gemini/, azure/, .*, local/"):
        LM("nosuch/model")
    with pytest.raises(LMConfigurationError, match="did you mean 'openai/gpt-4o'"):
        LM("gpt-4o")


def test_a_missing_key_names_its_variable() -> None:
    lm = LM("openai/gpt-4o-mini")
    with pytest.raises(LMConfigurationError, match="OPENAI_API_KEY"):
        lm.connect()
    with pytest.raises(LMConfigurationError, match="OPENAI_API_KEY"):
        LM("openai/x", api_base="https://llm.example/v1").connect()
    with pytest.raises(LMConfigurationError, match="HOSTED_VLLM_API_BASE"):
        LM("hosted_vllm/x").connect()


@pytest.mark.parametrize(
    ("model", "options", "environ", "url", "name", "key"),
    [
        ("openai/m", {}, {"OPENAI_API_KEY": " k\n"}, "https://api.openai.com/v1", "m", "k"),
        (
            "openai/m",
            {},
            {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "https://p.example"},
            "https://p.example",
            "m",
            "k",
        ),
        ("openai/m", {}, {"OPENAI_API_BASE": "http://127.0.0.1:1/v1"}, "http://127.0.0.1:1/v1", "m", None),
        ("openai/m", {"api_base": "http://localhost:8000/v1"}, {}, "http://localhost:8000/v1", "m", None),
        ("openai/a/b", {"api_base": "http://[::1]/v1"}, {}, "http://[::1]/v1", "a/b", None),
        (
            "org/name",
            {"api_base": "https://llm.example/v1"},
            {"OPENAI_API_KEY": "k"},
            "https://llm.example/v1",
            "org/name",
            None,
        ),
        (
            "hosted_vllm/o/n",
            {"api_base": "http://10.0.0.9:8000/v1"},
            {},
            "http://10.0.0.9:8000/v1",
            "o/n",
            None,
        ),
        ("ollama/llama3", {}, {}, "http://127.0.0.1:11434/v1", "llama3", None),
    ],
)
def test_where_a_model_is(
    model: str, options: Any, environ: dict[str, str], url: str, name: str, key: Any
) -> None:
    target = locate(model, environ=environ, **options)
    assert (target.address.url, target.model) == (url, name)
    assert (target.key.reveal(target.address.origin) if target.key else None) == key


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "https://user:pass@host/v1",
        "https://host:99999/v1",
        "https://good.example\\@evil.example/",
        "https://host/v1#x",
        "https://ho st/",
        "host/v1",
        "http://",
        "http://[::1",
        "https://host/\r\nX: y",
    ],
)
def test_a_bad_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(LMConfigurationError) as raised:
        LM("openai/x", api_base=url, api_key=CANARY)
    assert "pass" not in str(raised.value)
    assert CANARY not in str(raised.value)


def test_addresses_are_taken_apart() -> None:
    assert parse("https://host/v1?api-version=2").join("/chat") == "https://host/v1/chat?api-version=2"
    assert parse("http://host:8000/v1/").join("/chat") == "http://host:8000/v1/chat"
    assert parse("http://127.1.2.3/").is_loopback
    assert not parse("http://localhost.example/").is_loopback


# ------------------------------------------------------------------------------------------- keys


def test_a_key_shows_nothing_and_goes_nowhere_else() -> None:
    key = Secret(CANARY, "https://api.openai.com")
    assert (repr(key), str(key), f"{key:>10}", f"{key!r}") == ("***",) * 4
    for write in (json.dumps, orjson.dumps, pickle.dumps, copy_by_pickle):
        with pytest.raises(TypeError):
            write(key)
    with pytest.raises(LMConfigurationError, match=r"https://evil\.example") as raised:
        key.reveal("https://evil.example")
    assert CANARY not in str(raised.value)
    assert key.reveal("https://api.openai.com") == CANARY
    assert (
        key == Secret(CANARY, "https://api.openai.com"),
        key == Secret("x", "https://api.openai.com"),
    ) == (True, False)
    assert key != CANARY
    assert copy.deepcopy(key) is key
    assert not hasattr(key, "__dict__")


def copy_by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol=2))


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    for value in ("sk\nX: y", "sk-é", "sk\0"):
        with pytest.raises(LMConfigurationError) as raised:
            LM("openai/x", api_key=value)
        assert value not in str(raised.value)


def test_a_copy_for_another_server_does_not_take_the_key_along() -> None:
    lm = LM("openai/x", api_base="https://one.example/v1", api_key=CANARY)
    lm.copy(temperature=1.0).connect()
    with pytest.raises(LMConfigurationError, match=r"one\.example and is not sent to"):
        lm.copy(api_base="https://two.example/v1").connect()
    with pytest.raises(LMConfigurationError, match="is not sent to"):
        lm.copy(api_base="http://one.example/v1").connect()
    lm.copy(api_base="https://two.example/v1", api_key="other").connect()


# ------------------------------------------------------------------------ a value among other values


def test_models_are_values() -> None:
    lm = LM("openai/x", temperature=0.5, stop=["a"], seed=None)
    assert lm == LM("openai/x", stop=["a"], temperature=0.5)
    assert hash(lm) == hash(LM("openai/x", stop=["a"], temperature=0.5))
    assert lm.options == lm.kwargs == {"temperature": 0.5, "stop": ["a"]}
    others = [
        LM("openai/y", temperature=0.5, stop=["a"]),
        lm.copy(temperature=0.6),
        lm.copy(stop=None),
        lm.copy(cache=False),
        lm.copy(rollout_id=1),
        lm.copy(timeout=5),
        lm.copy(num_retries=0),
        lm.copy(api_base="http://localhost/v1"),
        lm.copy(api_key="k"),
        LocalLM(),
    ]
    assert [other for other in others if other == lm] == []
    assert lm.copy() == lm
    assert copy.deepcopy(lm) is lm
    with pytest.raises(AttributeError, match=r"copy\(temperature"):
        lm.temperature = 1.0  # type: ignore[attr-defined]


def test_a_copy_keeps_what_it_is_not_told_to_change() -> None:
    lm = LM(
        "openai/x",
        cache=False,
        num_retries=1,
        timeout=7.0,
        rollout_id=3,
        max_tokens=9,
        prices={"a": Price(1, 1)},
    )
    made = lm.copy(rollout_id=4)
    assert (made.cache, made.num_retries, made.timeout, made.rollout_id) == (False, 1, 7.0, 4)
    assert made.options == {"max_tokens": 9}
    assert made.copy(rollout_id=3) == lm


@pytest.mark.parametrize(
    "options",
    [
        {"messages": []},
        {"stream": True},
        {"extra_headers": {}},
        {"num_retries": -1},
        {"timeout": 0},
        {"model_type": "embedding"},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LMConfigurationError):
        LM("openai/x", **options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("timout", "timeout"), ("fallback", "fallbacks"), ("limit", "limits"), ("max_retries", "num_retries")],
)
def test_a_misspelt_setting_is_not_sent_to_the_provider(given: str, meant: str) -> None:
    with pytest.raises(LMConfigurationError, match=rf"{given}=.*did you mean {meant}=.*extra_body"):
        LM("openai/x", **{given: 3})
    assert LM("openai/x", extra_body={given: 3}).options == {given: 3}


def test_several_addresses_are_endpoints() -> None:
    with pytest.raises(LMConfigurationError, match=r"one URL.*endpoints=\[Backend\("):
        LM("openai/x", api_base=["http://127.0.0.1:1", "http://127.0.0.1:2"])  # type: ignore[arg-type]


def test_the_identity_is_what_decides_the_answers() -> None:
    lm = LM("openai/x", api_base="https://h.example:8443/v1", api_key=CANARY, temperature=0.0, num_retries=9)
    assert lm.identity() == {
        "model": "openai/x",
        "options": {"temperature": 0.0},
    }
    assert lm.identity() == lm.copy(num_retries=0, cache=False, api_key=None).identity()
    assert lm.identity() == lm.copy(api_base="https://h.example:9443/v1").identity(), "the same, moved"
    assert LM("openai/x", rollout_id=2).identity()["rollout_id"] == 2


def test_a_model_is_recognised_by_what_it_has() -> None:
    for made in (LM("openai/x"), LocalLM(), ScriptedLM("x")):
        assert isinstance(made, Model)
        assert resolve(made) is made
    assert resolve("openai/x") is resolve("openai/x")
    assert resolve("openai/x") == LM("openai/x")
    for nothing in (None, ""):
        with pytest.raises(LMNotConfiguredError):
            resolve(nothing)
    with pytest.raises(LMConfigurationError, match="int is not a model"):
        resolve(42)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ saved models


def test_a_saved_model_comes_back_without_its_key() -> None:
    lm = LM(
        "openai/x", api_key=CANARY, temperature=0.3, max_tokens=100, num_retries=5, cache=False, rollout_id=2
    )
    state = json.loads(json.dumps(lm.dump_state()))
    assert CANARY not in json.dumps(state)
    assert LM.load_state(state) == lm.copy(api_key=None)


def test_a_key_in_the_query_of_an_address_is_neither_saved_nor_shown() -> None:
    url = "https://gate.example/v1?api-version=2024-10-21&key=sk-CANARY-0123456789"
    clean = "https://gate.example/v1?api-version=2024-10-21"
    assert LM("x/m", api_base=url).dump_state()["api_base"] == clean
    place = Backend(url)
    assert LM("x/m", endpoints=[place]).dump_state()["endpoints"] == [clean]
    assert "CANARY" not in repr(place)
    assert (
        LM("x/m", api_base="https://a.example/v1?tenant=7").dump_state()["api_base"] == "https://a.example/v1"
    )


def test_the_saved_model_of_another_framework_is_read() -> None:
    state = {
        "_dspy_lm_class": "dspy.clients.lm.LM",
        "model": "openai/gpt-4o-mini",
        "model_type": "chat",
        "cache": True,
        "num_retries": 3,
        "temperature": 0.3,
        "max_tokens": None,
        "finetuning_model": None,
        "launch_kwargs": {},
        "train_kwargs": {},
        "api_key": CANARY,
    }
    lm = LM.load_state(state)
    assert lm == LM("openai/gpt-4o-mini", temperature=0.3)
    assert CANARY not in repr(lm.dump_state())


@pytest.mark.parametrize(
    "state",
    [
        {"model": "openai/x", "api_base": "https://evil.example/v1"},
        {"model": "openai/x", "base_url": "https://evil.example/v1", "api_key": CANARY},
        {"model": "nosuch/claude", "temperature": 1.0},
        {"model": "openai/x", "extra_headers": {"X": "y"}},
        {"model": "openai/x", "prices": {}, "stream": True},
    ],
)
def test_a_file_does_not_decide_where_data_is_sent(state: dict[str, Any]) -> None:
    lm = LM.load_state(state)
    assert isinstance(lm, SavedLM)
    assert (lm.model, lm) == (state["model"], LM.load_state(state))
    with pytest.raises(LMConfigurationError, match="cannot be asked"):
        lm.connect()
    kept = {name: value for name, value in state.items() if name != "api_key"}
    assert lm.dump_state() == kept


def test_a_state_without_a_name_is_no_model() -> None:
    for state in ({}, {"model": 7}, {"model": ""}):
        with pytest.raises(LMConfigurationError):
            LM.load_state(state)


# ------------------------------------------------------------------------------------------- calls


def test_prompt_and_messages_make_requests() -> None:
    lm = LM("openai/x", temperature=0.1, rollout_id=1)
    request = lm.request("hi", temperature=0.9, top_p=0.5, cache=False, rollout_id=None)
    assert (request.options, request.cache, request.rollout_id) == (
        {"temperature": 0.9, "top_p": 0.5},
        False,
        None,
    )
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}]
    assert [message.to_json() for message in lm.request(messages=turns).messages] == turns
    for bad in (
        {},
        {"prompt": "a", "messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
    ):
        with pytest.raises(LMConfigurationError):
            lm.request(**bad)  # type: ignore[arg-type]


def test_another_rollout_at_temperature_0_is_warned_about() -> None:
    lm = ScriptedLM(["one", "one", "two"], temperature=0.0)
    with pytest.warns(UserWarning, match="rollout_id has no effect"):
        lm("a", rollout_id=1)
    lm("a")
    lm("a", rollout_id=1, temperature=0.5)


def test_both_doors_lead_to_the_same_answers() -> None:
    lm = ScriptedLM(["one", "two", "three"], cache=True)
    assert lm("a") == ["one"]
    assert lm("a") == ["one"]
    assert asyncio.run(lm.acall("a")) == ["one"]
    assert lm(messages=[{"role": "user", "content": "b"}]) == ["two"]
    assert lm("a", rollout_id=1) == ["three"]
    assert lm.call_count == 3


def test_all_completions_are_returned() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    seen: list[Any] = []

    def handler(request: Any) -> Any:
        import httpx

        seen.append(request)
        return httpx.Response(200, content=completion(choices=choices))

    async def go() -> list[str]:
        endpoint = Endpoint(
            "https://api.openai.com/v1/chat/completions", {"X-A": "b"}, FakeTransport(handler)
        )
        client = Client(
            endpoint, ChatCompletions("x"), model="openai/x", provider="openai", secret=None, timeout=5.0
        )
        response = await client(Request.of("openai/x", "hi", n=2))
        await client.aclose()
        with pytest.raises(LMError, match="closed"):
            await client(Request.of("openai/x", "hi", n=2))
        return [choice.text for choice in response.choices]

    assert asyncio.run(go()) == ["a", "b"]
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "https://api.openai.com/v1/chat/completions")
    assert request.headers["host"] == "api.openai.com"
    assert int(request.headers["content-length"]) == len(request.content)
    assert request.headers["x-a"] == "b"
    assert "idempotency-key" in request.headers


# --------------------------------------------------------------------------------- as in DSPy's programs


class Form(BaseModel):
    number: int
    word: str = "x"


def test_a_model_of_pydantic_s_is_the_schema_of_the_answer() -> None:
    for lm, options in (
        (LM("openai/x"), {"response_format": Form}),
        (LM("openai/x", response_format=Form), {}),
    ):
        sent = lm.request("hi", **options).options["response_format"]["json_schema"]
        assert (sent["strict"], sent["schema"]["required"]) == (True, ["number", "word"])
        assert sent["schema"]["additionalProperties"] is False


def test_the_fields_of_an_extra_body_are_options() -> None:
    lm = LM("openai/x", extra_body={"top_k": 3}, min_p=0.5)
    assert lm.request("hi", extra_body={"top_k": 5}).options == {"top_k": 5, "min_p": 0.5}
    with pytest.raises(LMConfigurationError, match="headers"):
        lm.request("hi", extra_body={"headers": {}})
    with pytest.raises(LMConfigurationError, match="extra_body is a dict"):
        LM("openai/x", extra_body=[1])


def test_arguments_stand_in_the_order_of_dspy_s() -> None:
    heard = [object()]
    lm = LM("openai/x", "chat", 0.5, 9, False, heard, 1)
    assert (lm.options, lm.cache, lm.callbacks, lm.num_retries) == (
        {"temperature": 0.5, "max_tokens": 9},
        False,
        heard,
        1,
    )


@pytest.mark.parametrize(
    ("name", "value"), [("api_base", "http://127.0.0.1:1"), ("timeout", 5), ("num_retries", 1)]
)
@pytest.mark.parametrize("model", ["openai/x", "openai/responses/x", "anthropic/claude-x", "gemini/gemini-x"])
def test_a_call_has_no_settings_of_its_own(model: str, name: str, value: Any) -> None:
    lm = LM(model, api_key=CANARY, api_base="http://127.0.0.1:9")
    with pytest.raises(LMConfigurationError, match=rf"{name}.*lm\.copy\({name}="):
        lm("hi", **{name: value})


def test_turns_as_the_prompt_are_refused() -> None:
    with pytest.raises(LMConfigurationError, match="messages="):
        LM("openai/x").request([{"role": "user", "content": "hi"}])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"num_retries": True}, {"num_retries": 1.5}, {"timeout": None}, {"timeout": "5"}]
)
def test_numbers_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LMConfigurationError):
        LM("openai/x", **options)


def test_no_name_at_all_is_not_configured() -> None:
    with pytest.raises(LMNotConfiguredError, match="None"):
        LM(None)  # type: ignore[arg-type]


class Own(LM):
    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return super().forward(prompt, messages, **kwargs)


class Bare(BaseLM):
    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return self.kwargs["temperature"]


def test_a_subclass_comes_back_as_what_it_was_where_it_is_named() -> None:
    own = Own("openai/x", temperature=0.5, limits=Limits(requests_per_minute=5))
    made = Own.load_state(own.dump_state())
    assert (type(made), made) == (Own, own)
    lost = LM.load_state(own.dump_state())
    assert isinstance(lost, SavedLM), "and not as another model, which would answer in another way"
    bare = Bare.load_state(Bare("mine/m", temperature=0.5).dump_state())
    assert (type(bare), bare.model, bare.options) == (Bare, "mine/m", {"temperature": 0.5})
    assert BaseLM.load_state(LM("openai/x", max_tokens=3).dump_state()) == LM("openai/x", max_tokens=3)
