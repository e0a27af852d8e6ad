"""``n`` answers, also of providers that give one at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.lm import LM
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.several import Several
from dspy_stream.types import Choice, Request, Response, Usage
from tests.lm.server import ModelServer, Reply, Seen, completion


def counting(**more: Any) -> Callable[[Seen], Reply]:
    numbers = itertools.count()
    return lambda _seen: Reply(completion(f"answer {next(numbers)}", **more))


def asked(model: str, *questions: dict[str, Any], then: Callable[[Seen], Reply] | None = None) -> Any:
    """The answers of one model to the questions, and what the server saw."""

    async def work() -> Any:
        async with ModelServer(then=then or counting()) as server:
            lm = LM(model, api_base=server.url, api_key="k", num_retries=0)
            return [sorted(await lm.acall("q", **each)) for each in questions], server.seen

    return asyncio.run(work())


def test_what_a_server_leaves_out_is_asked_for_once_and_kept() -> None:
    (first, again, other), seen = asked("openai/x", {"n": 3}, {"n": 3}, {"n": 3, "rollout_id": 1})
    assert first == again == ["answer 0", "answer 1", "answer 2"]
    assert other == ["answer 3", "answer 4", "answer 5"]
    assert [request.json.get("n") for request in seen] == [3, None, None] * 2


def test_a_server_that_gives_them_all_is_asked_once() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in "abc"]
    (made,), seen = asked("openai/x", {"n": 3}, then=counting(choices=choices))
    assert (made, len(seen)) == (["a", "b", "c"], 1)


@pytest.mark.parametrize("model", ["groq/llama-3", "openai/responses/gpt-5", "anthropic/claude-sonnet-4-5"])
def test_a_provider_that_refuses_n_is_not_sent_it(model: str) -> None:
    numbers = itertools.count()

    def then(seen: Seen) -> Reply:
        text = f"answer {next(numbers)}"
        content = [{"type": "text", "text": text}]
        output = [{"type": "message", "content": content}]
        return Reply(completion(text, content=content, output=output, usage={}))

    (made,), seen = asked(model, {"n": 2}, then=then)
    assert made == ["answer 0", "answer 1"]
    assert not any("n" in request.json for request in seen)


def test_one_that_fails_fails_all_and_what_came_is_kept() -> None:
    journal = DictJournal()
    numbers = itertools.count()

    def then(_seen: Seen) -> Reply:
        number = next(numbers)
        return Reply(b"{}", status=400) if number == 1 else Reply(completion(f"answer {number}"))

    async def work() -> tuple[list[str], int]:
        async with ModelServer(then=then) as server:
            lm = LM("openai/x", api_base=server.url, num_retries=0)
            layer = lm.connect(journal)
            request = lm.request("q", n=2)
            with pytest.raises(LMInvalidRequestError):
                await layer(request)
            response = await layer(request)
            await layer.aclose()
            return [choice.text for choice in response.choices], len(server.seen)

    assert asyncio.run(work()) == (["answer 0", "answer 2"], 3)


class Recording:
    """A layer that gives one answer a request."""

    def __init__(self, *cached: bool) -> None:
        self.seen: list[Request] = []
        self._cached = iter(cached)

    async def __call__(self, request: Request) -> Response:
        self.seen.append(request)
        cached = next(self._cached, False)
        return Response((Choice(str(len(self.seen))),), Usage(10, 1, 0.5), "m", cached=cached)

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("cached", "usage", "whole"),
    [
        ((False, False), Usage(20, 2, 1.0), False),
        ((True, False), Usage(10, 1, 0.5), False),
        ((True, True), Usage(20, 2, 1.0), True),
    ],
)
def test_it_used_what_was_paid_for(cached: tuple[bool, bool], usage: Usage, whole: bool) -> None:
    response = asyncio.run(Several(Recording(*cached))(Request.of("x/m", "q", n=2)))
    assert (response.usage, response.cached, len(response.choices)) == (usage, whole, 2)


def test_answers_that_are_not_shared_have_names_of_their_own() -> None:
    inner = Recording()
    asyncio.run(Several(inner)(Request.of("x/m", "q", n=3, cache=False).kept_as(b"name")))
    names = [request.journal_key() for request in inner.seen]
    assert names[0] == b"name"
    assert len(set(names)) == 3
    unnamed = Recording()
    asyncio.run(Several(unnamed)(Request.of("x/m", "q", n=3, cache=False)))
    assert [request.journal_key() for request in unnamed.seen] == [None] * 3
