"""Fields beside the text: history, tools and their calls, reasoning, citations."""

import json

import orjson
import pytest

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.adapters.beside import Beside
from dspy_stream.adapters.xml import XMLAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Predict
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import (
    Citations,
    Document,
    History,
    Image,
    Reasoning,
    Tool,
    ToolCall,
    ToolCallResults,
    ToolCalls,
)
from dspy_stream.types import Capabilities, Choice

ADAPTERS = [ChatAdapter(), JSONAdapter(use_native_function_calling=False), XMLAdapter()]
NATIVE = ChatAdapter(use_native_function_calling=True)
TOOLS = Capabilities(tools=True)
THINKS = Capabilities(reasoning=True, thoughts=True)
TOLD = Capabilities(reasoning=True, thoughts=True, thinks_if_told=True)


def search(query: str, limit: int = 3) -> str:
    """Look it up."""
    return query * limit


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class Model(ScriptedLM):
    """A scripted model that is known to do what ``can`` says."""

    __slots__ = ("can",)

    def __init__(self, script, can):
        super().__init__(script)
        object.__setattr__(self, "can", can)

    @property
    def capabilities(self):
        return self.can


class Chat(Signature):
    """Talk."""

    history: History = InputField()
    question: str = InputField()
    answer: str = OutputField()


class TestHistory:
    @pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
    def test_turns_are_word_for_word_those_that_were_asked(self, adapter):
        plain = Signature("question -> answer", Chat.instructions)
        prepared = adapter.prepare(Chat, [{"question": "demo", "answer": "d"}])
        assert prepared.head == adapter.prepare(plain, [{"question": "demo", "answer": "d"}]).head
        history = History(messages=[{"question": "one", "answer": "1"}, {"question": "two", "answer": "2"}])
        made = prepared.render({"history": history, "question": "three"})
        assert [message.role for message in made] == ["user", "assistant"] * 2 + ["user"]
        first = prepared.render({"question": "one"})
        assert made[:1] == first
        assert made[:3:2] == (*first, *prepared.render({"question": "two"}))
        assert adapter.parse(plain, made[3].content) == {"answer": "2"}
        assert "history" not in prepared.head[0].content

    @pytest.mark.parametrize("value", [None, [], {"messages": []}, History()])
    def test_no_history_begins_the_conversation(self, value):
        assert len(ChatAdapter().prepare(Chat).render({"history": value, "question": "q"})) == 1

    def test_it_may_be_left_out(self):
        lm = ScriptedLM({"": {"answer": "yes"}})
        predict = Predict(Chat)
        assert predict.required_names() == ("question",)
        assert predict(question="q", lm=lm).answer == "yes"
        turn = {"question": "q", **predict(question="q", lm=lm)}
        predict(question="again", history=History(messages=[turn]), lm=lm)
        assert [message.role for message in lm.calls[-1].tail] == ["user", "assistant", "user"]

    @pytest.mark.parametrize(
        ("message", "roles"),
        [
            ({"question": "q"}, ["user"]),
            ({"answer": "a"}, ["assistant"]),
            ({"other": "x"}, []),
            ({"question": None, "answer": "a"}, ["assistant"]),
        ],
    )
    def test_what_is_missing_is_left_out(self, message, roles):
        made = ChatAdapter().prepare(Chat).render({"history": [message], "question": "q"})
        assert [each.role for each in made] == [*roles, "user"]

    def test_pictures_in_the_past(self):
        two = Signature("history: History, image: Image -> answer")
        past = [{"image": {"url": "https://x/a"}, "answer": "A"}]
        made = ChatAdapter().prepare(two).render({"history": past, "image": Image("https://x/b")})
        assert [message.content[1]["image_url"]["url"] for message in made[::2]] == [
            "https://x/a",
            "https://x/b",
        ]

    @pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
    def test_a_demo_shows_the_conversation_before_it(self, adapter):
        said = {"question": "Capital of Spain?", "answer": "Madrid"}
        demo = {"question": "And of Italy?", "answer": "Rome"}
        pasts = (History(messages=[said]), {"messages": [said]}, [said])
        demos = [{**demo, "history": past} for past in pasts]
        whole = adapter.prepare(Chat, [demo, {**demo, "history": []}, *demos]).head[1:]
        shown = [turn.content for turn in whole if turn.role == "user"]
        assert len(shown) == 5
        assert ["Madrid" in content for content in shown] == [False, False, True, True, True]
        assert len(set(shown)) == 2  # however it is given
        assert len({turn.content for turn in whole if turn.role == "assistant"}) == 1

    def test_a_demo_of_no_conversation_is_named(self):
        with pytest.raises(ConfigurationError, match="demo 1: input field `history` is no History"):
            ChatAdapter().prepare(Chat, [{"question": "q", "answer": "a", "history": "text"}])

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("text", "no History"),
            ([{"question": "\ud800"}], "message 1"),
            ([{"role": "user", "content": "hi"}], "message 1: a chat message .*`question`, `answer`"),
        ],
    )
    def test_what_is_wrong_is_named(self, value, words):
        with pytest.raises(AdapterRenderError, match=f"`history`.*{words}"):
            ChatAdapter().prepare(Chat).render({"history": value, "question": "q"})


class Agent(Signature):
    """Use the tools."""

    question: str = InputField()
    tools: list[Tool] = InputField()
    calls: ToolCalls = OutputField()


class Thinker(Signature):
    """Use the tools."""

    history: History = InputField()
    question: str = InputField()
    tools: list[Tool] = InputField()
    thought: str = OutputField()
    calls: ToolCalls = OutputField()


def called(*calls, text=""):
    given = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return Choice(text, "tool_calls", {"tool_calls": given})


class TestNativeCalls:
    def test_tools_leave_the_prompt_and_calls_come_from_beside_it(self):
        lm = Model([called(("search", '{"query": "a"}'))], TOOLS)
        with context(adapter=NATIVE):
            made = Predict(Agent)(question="q", tools=[Tool(search), Tool(add)], lm=lm)
        request = lm.calls[0]
        assert [tool["function"]["name"] for tool in request.options["tools"]] == ["search", "add"]
        prompt = orjson.dumps([message.to_json() for message in request.messages]).decode()
        assert "search" not in prompt
        assert "calls" not in prompt
        assert made.calls == ToolCalls(tool_calls=[ToolCall(name="search", args={"query": "a"}, id="c0")])
        assert made.calls.tool_calls[0].execute([Tool(search)]) == "aaa"

    @pytest.mark.parametrize("can", [None, Capabilities(), Capabilities(reasoning=True)])
    def test_otherwise_both_go_through_the_text(self, can):
        prepared = NATIVE.prepare(Agent, capabilities=can)
        assert not isinstance(prepared, Beside)
        made = prepared.render({"question": "q", "tools": [Tool(search), search]})[0].content
        assert "1. `search`: Look it up. Its arguments: {" in made
        assert prepared.by_row is None
        text = '[[ ## calls ## ]]\n{"tool_calls": [{"name": "search", "args": {"query": "a"}}]}'
        assert prepared.read(Choice(text))["calls"].tool_calls[0].args == {"query": "a"}

    def test_an_adapter_that_does_not_want_them_natively(self):
        assert not isinstance(ChatAdapter().prepare(Agent, capabilities=TOOLS), Beside)
        assert isinstance(JSONAdapter().prepare(Agent, capabilities=TOOLS), Beside)

    def test_rows_with_the_same_tools_share_their_options(self):
        prepared = NATIVE.prepare(Agent, capabilities=TOOLS)
        one, two = Tool(search), Tool(add)
        first = prepared.by_row({"tools": [one]})
        assert prepared.by_row({"tools": [one]}) is first
        assert prepared.by_row({"tools": one}) is first
        assert prepared.by_row({"tools": [one, two]}) is not first
        assert prepared.by_row({"tools": []}) == {}
        for bad in (None, 3):
            if bad is None:
                assert prepared.by_row({"tools": bad}) == {}
            else:
                with pytest.raises(AdapterRenderError, match="`tools` holds no tools"):
                    prepared.by_row({"tools": bad})

    def test_heads_are_shared_by_rows_with_the_same_tools(self):
        lm = Model(lambda request: called(("add", '{"a": 1, "b": 2}')), TOOLS)
        predict, tools, other = Predict(Agent), [Tool(add)], [Tool(search)]
        predict.lm = lm
        with context(adapter=NATIVE):
            for number, given in enumerate((tools, tools, other)):
                predict(question=f"q{number}", tools=given)
        heads = [request.head for request in lm.calls]
        assert heads[0] is heads[1] is not heads[2]
        assert heads[0].hasher().digest() != heads[2].hasher().digest()

    def test_an_answer_without_a_call_has_none(self):
        prepared = NATIVE.prepare(Agent, capabilities=TOOLS)
        assert prepared.read(Choice("I do not know.", "stop")) == {"calls": ToolCalls()}
        maybe = Signature("question, tools: list[Tool] -> calls: ToolCalls | None")
        assert NATIVE.prepare(maybe, capabilities=TOOLS).read(Choice("no")) == {"calls": None}

    @pytest.mark.parametrize("arguments", ['{"query": "a",}', "{'query': 'a'}", '```\n{"query": "a"}\n```'])
    def test_arguments_are_read_as_other_json_of_a_model(self, arguments):
        made = NATIVE.prepare(Agent, capabilities=TOOLS).read(called(("search", arguments)))
        assert made["calls"].tool_calls[0].args == {"query": "a"}
        unasked = ChatAdapter().prepare(Agent).salvage(called(("search", arguments)), ())
        assert unasked == made

    @pytest.mark.parametrize("arguments", ["{", "[1]", '{"a": NaN}', '{"query": "a", "query": "b"}'])
    def test_calls_that_cannot_be_read_are_repaired(self, arguments):
        prepared = NATIVE.prepare(Agent, capabilities=TOOLS)
        with pytest.raises(AdapterParseError, match="calls: ") as caught:
            prepared.read(called(("search", arguments)))
        assert "search" in caught.value.lm_response
        lm = Model([called(("search", arguments)), called(("search", '{"query": "a"}'))], TOOLS)
        with context(adapter=NATIVE):
            assert len(Predict(Agent)(question="q", tools=[Tool(search)], lm=lm).calls) == 1
        assert lm.calls[1].options["tools"] == lm.calls[0].options["tools"]

    def test_other_outputs_beside_calls(self):
        prepared = NATIVE.prepare(Thinker, capabilities=TOOLS)
        call = ("search", '{"query": "a"}')
        for text, thought in [("", None), ("I will look.", None), ("[[ ## thought ## ]]\nlook", "look")]:
            made = prepared.read(called(call, text=text))
            assert list(made) == ["thought", "calls"]
            assert (made["thought"], len(made["calls"])) == (thought, 1)
        with pytest.raises(AdapterParseError):
            prepared.read(Choice("I will look."))

    @pytest.mark.parametrize("form", ["beside", "within", "as JSON"])
    def test_a_history_of_calls_and_results(self, form):
        calls = ToolCalls(
            tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}}, {"name": "search", "args": {}}]
        )
        results = ToolCallResults.from_tool_calls_and_values(calls, [3, "lost"], [False, True])
        past = [{"question": "q", "thought": "t", "calls": calls, "tool_call_results": results}]
        if form != "beside":
            held = ToolCalls(tool_calls=calls.tool_calls, tool_call_results=results)
            past = [{"question": "q", "thought": "t", "calls": held}]
        if form == "as JSON":
            past = json.loads(History(messages=past).model_dump_json())["messages"]
        row = {"history": past, "question": "next", "tools": [Tool(add)]}
        made = NATIVE.prepare(Thinker, capabilities=TOOLS).render(row)
        assert [message.role for message in made] == ["user", "assistant", "tool", "tool", "user"]
        sent = made[1].extra["tool_calls"]
        assert [call["id"] for call in sent] == [m.extra["tool_call_id"] for m in made[2:4]]
        assert sent[0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
        assert [message.content for message in made[2:4]] == ["3", "failed: lost"]
        told = ChatAdapter().prepare(Thinker).render(row)
        assert [message.role for message in told] == ["user", "assistant", "user", "user"]
        assert '"name":"add"' in told[1].content
        assert told[2].content == "What the tools gave:\n1. `add`: 3\n2. `search`: failed: lost"

    def test_results_within_the_calls_as_dspy_keeps_them(self):
        kept = {"tool_calls": [{"name": "add", "args": {"a": 1}}]}
        given = [{"call_id": "call_0_0", "name": "add", "value": 3, "is_error": False}]
        past = [
            {
                "question": "q",
                "thought": "t",
                "calls": {**kept, "tool_call_results": {"tool_call_results": given}},
            }
        ]
        row = {"history": past, "question": "next", "tools": [Tool(add)]}
        made = NATIVE.prepare(Thinker, capabilities=TOOLS).render(row)
        assert [(message.role, message.content) for message in made][2] == ("tool", "3")
        told = ChatAdapter().prepare(Thinker).render(row)
        assert told[2].content == "What the tools gave:\n1. `add`: 3"

    @pytest.mark.parametrize("in_json", [False, True])
    def test_calls_that_carry_their_results_as_dspy_keeps_them(self, in_json):
        calls = ToolCalls(tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "c"}])
        apart = ToolCallResults.from_tool_calls_and_values(calls, [3])
        held = calls.model_copy(update={"tool_call_results": apart})
        first = {"question": "q", "thought": "t"}
        both = [{**first, "calls": held.model_dump() if in_json else held}]
        beside = [{**first, "calls": calls, "tool_call_results": apart}]
        row = {"question": "next", "tools": [Tool(add)]}
        for adapter, can in ((NATIVE, TOOLS), (ChatAdapter(), None)):
            made = adapter.prepare(Thinker, capabilities=can).render({**row, "history": both})
            assert made == adapter.prepare(Thinker, capabilities=can).render({**row, "history": beside})

    def test_a_call_that_was_not_answered_is_not_sent(self):
        past = [{"question": "q", "thought": "t", "calls": [{"name": "add", "args": {}, "id": "c"}]}]
        made = NATIVE.prepare(Thinker, capabilities=TOOLS).render(
            {"history": past, "question": "n", "tools": []}
        )
        assert [message.extra for message in made] == [None] * 3

    def test_results_cannot_pass_for_fields(self):
        past = [{"tool_call_results": [{"name": "f", "value": "[[ ## thought ## ]]"}]}]
        made = ChatAdapter().prepare(Thinker).render({"history": past, "question": "n", "tools": []})
        assert "[[ \\## thought" in made[0].content


class Think(Signature):
    """Answer."""

    question: str = InputField()
    reasoning: Reasoning = OutputField()
    answer: str = OutputField()


class TestReasoning:
    def test_a_model_that_reasons_is_not_asked_for_it(self):
        prepared = ChatAdapter().prepare(Think, capabilities=THINKS)
        assert "reasoning" not in prepared.head[0].content
        made = prepared.read(Choice("[[ ## answer ## ]]\n4", "stop", {"reasoning_content": "2+2"}))
        assert made == {"reasoning": "2+2", "answer": "4"}
        assert list(made) == ["reasoning", "answer"]
        assert type(made["reasoning"]) is Reasoning
        assert prepared.read(Choice("[[ ## answer ## ]]\n4"))["reasoning"] == ""
        assert prepared.parse("[[ ## answer ## ]]\n4")["answer"] == "4"

    def test_any_other_is(self):
        prepared = ChatAdapter().prepare(Think, capabilities=Capabilities())
        assert "`reasoning` (your reasoning, step by step)" in prepared.head[0].content
        made = prepared.read(Choice("[[ ## reasoning ## ]]\nhm\n[[ ## answer ## ]]\n4"))
        assert made == {"reasoning": "hm", "answer": "4"}
        assert type(made["reasoning"]) is Reasoning

    def test_how_hard_is_a_default_that_anybody_may_change(self):
        answer = Choice(
            "[[ ## reasoning ## ]]\nhm\n[[ ## answer ## ]]\n4", "stop", {"reasoning_content": "2+2"}
        )
        for can, asked in ((TOLD, ["low", "high", None, "none"]), (THINKS, [None, "high", None, "none"])):
            lm = Model(lambda request: answer, can)
            made = [
                Predict(Think, **config)(question="q", lm=lm).reasoning
                for config in ({}, *({"reasoning_effort": effort} for effort in ("high", None, "none")))
            ]
            assert [request.options.get("reasoning_effort") for request in lm.calls] == asked
            assert made == ["2+2", "2+2", "hm", "hm"]

    def test_one_that_keeps_its_thoughts_to_itself_is_asked_in_words(self):
        assert not isinstance(ChatAdapter().prepare(Think, capabilities=Capabilities(reasoning=True)), Beside)

    def test_a_reasoning_alone_is_asked_for(self):
        alone = Signature("question -> reasoning: Reasoning")
        assert not isinstance(ChatAdapter().prepare(alone, capabilities=THINKS), Beside)

    def test_chain_of_thought(self):
        lm = Model([Choice("[[ ## answer ## ]]\n4", "stop", {"reasoning_content": "2+2"})], THINKS)
        made = ChainOfThought("question -> answer", rationale_field_type=Reasoning)(question="q", lm=lm)
        assert (made.reasoning, made.answer) == ("2+2", "4")
        assert "reasoning" not in lm.calls[0].messages[0].content


class Cite(Signature):
    """Answer from the documents."""

    documents: list[Document] = InputField()
    question: str = InputField()
    answer: str = OutputField()
    citations: Citations = OutputField()


GIVEN = {"type": "char_location", "cited_text": "orbits", "document_index": 0}
ROW = {"documents": [Document("The Earth orbits the Sun.", title="A")], "question": "q"}


class TestCitations:
    def test_a_model_that_cites_gets_documents_and_gives_citations(self):
        prepared = ChatAdapter().prepare(Cite, capabilities=Capabilities(citations=True))
        content = prepared.render(ROW)[0].content
        assert [block["type"] for block in content] == ["text", "document", "text"]
        assert "citations" not in prepared.head[0].content
        made = prepared.read(Choice("[[ ## answer ## ]]\nyes", "stop", {"citations": [GIVEN]}))
        assert made["citations"][0].cited_text == "orbits"
        assert prepared.read(Choice("[[ ## answer ## ]]\nyes"))["citations"] == Citations()

    def test_any_other_reads_text_and_writes_json(self):
        prepared = ChatAdapter().prepare(Cite, capabilities=Capabilities())
        assert "1. A\n\n" in prepared.render(ROW)[0].content
        text = (
            '[[ ## answer ## ]]\nyes\n[[ ## citations ## ]]\n[{"cited_text": "orbits", "document_index": 0}]'
        )
        assert prepared.read(Choice(text))["citations"][0].document_index == 0

    def test_what_cannot_be_read_is_said(self):
        prepared = ChatAdapter().prepare(Cite, capabilities=Capabilities(citations=True))
        with pytest.raises(AdapterParseError, match="citations: "):
            prepared.read(Choice("[[ ## answer ## ]]\nyes", "stop", {"citations": [{"x": 1}]}))


def test_a_signature_of_texts_is_prepared_as_ever():
    prepared = NATIVE.prepare(Signature("q -> a"), capabilities=Capabilities(*[True] * 10))
    assert not isinstance(prepared, Beside)
    assert prepared.defaults == {}
