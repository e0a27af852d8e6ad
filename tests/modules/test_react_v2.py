"""ReActV2: turns in text and in the provider's own calls, submitting, going on, failures, many rows."""

import asyncio
import json

import pytest
from pydantic import BaseModel

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import (
    AdapterParseError,
    AdapterRenderError,
    ContextWindowExceededError,
    SignatureError,
)
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.react_v2 import NoSubmission, ReActV2
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import History, ToolCall, ToolCalls
from dspy_stream.types import Capabilities, Choice


class CapableLM(ScriptedLM):
    """A scripted model that calls tools itself."""

    __slots__ = ()

    @property
    def capabilities(self):
        return Capabilities(tools=True)


NATIVE = ChatAdapter(use_native_function_calling=True)


def look(what: str, times: int = 1) -> str:
    """Look at something."""
    return f"{what} seen" * times


def says(*calls, thought="hm"):
    """A turn in text."""
    return {
        "next_thought": thought,
        "tool_calls": {"tool_calls": [{"name": name, "args": args} for name, args in calls]},
    }


def calls(*given, thought=""):
    """A turn in the provider's own form."""
    made = [
        {
            "id": f"p{number}{name}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(args)},
        }
        for number, (name, args) in enumerate(given)
    ]
    return Choice(thought, "tool_calls", {"tool_calls": made})


LOOK = ("look", {"what": "the sky"})
SUBMIT = ("submit", {"answer": "blue"})


def agent(*lines, tools=(look,), native=False, signature="question -> answer", **options):
    module = ReActV2(signature, tools=list(tools), **options)
    lm = (CapableLM if native else ScriptedLM)(list(lines))
    module.set_lm(lm)
    return module, lm


def roles(request):
    return [message.role for message in request.tail]


def results(message):
    return [(each.value, each.is_error) for each in message["tool_calls"].tool_call_results.tool_call_results]


class TestInText:
    def test_a_tool_is_called_and_the_outputs_are_submitted(self):
        module, lm = agent(says(LOOK), says(SUBMIT, thought="done"))
        made = module(question="What colour?")
        assert (made.answer, made.termination_reason) == ("blue", "submit")
        first, second = made.history.messages
        assert (first["question"], first["next_thought"], results(first)) == (
            "What colour?",
            "hm",
            [("the sky seen", False)],
        )
        assert (second["answer"], results(second)) == ("blue", [({"answer": "blue"}, False)])
        assert "question" not in second
        assert roles(lm.calls[0]) == ["user"]
        assert roles(lm.calls[1]) == ["user", "assistant", "user", "user"]
        assert "the sky seen" in lm.calls[1].tail[2].content
        assert lm.calls[0].options.get("tools") is None

    def test_the_prompt_only_grows(self):
        module, lm = agent(says(LOOK), says(LOOK, LOOK), says(SUBMIT))
        module(question="What colour?")
        for before, after in zip(lm.calls, lm.calls[1:], strict=False):
            kept = before.messages if before is lm.calls[0] else before.messages[:-1]
            assert after.messages[: len(kept)] == kept
            assert before.head is after.head
        assert "What colour?" not in lm.calls[2].tail[-1].content
        assert "`look`: Look at something." in lm.calls[0].tail[0].content
        assert "null" not in lm.calls[2].tail[-1].content

    def test_several_tools_in_a_turn_run_in_their_order(self):
        order = []

        async def slow(n: int):
            await asyncio.sleep(0.002)
            order.append(n)
            return n

        def fast(n: int):
            order.append(n)
            return n

        module, lm = agent(says(("slow", {"n": 1}), ("fast", {"n": 2})), says(SUBMIT), tools=[slow, fast])
        assert results(module(question="?").history.messages[0]) == [(1, False), (2, False)]
        assert order == [1, 2]
        assert [call.id for call in module_calls(lm, module)] == ["call_0_0", "call_0_1"]


def module_calls(lm, module):
    lm = ScriptedLM([says(("fast", {"n": 1}), ("fast", {"n": 2})), says(SUBMIT)])
    module.set_lm(lm)
    return module(question="?").history.messages[0]["tool_calls"].tool_calls


class TestNative:
    @pytest.mark.parametrize("adapter", [NATIVE, JSONAdapter()], ids=["chat", "json"])
    def test_the_providers_own_calls_are_used(self, adapter):
        module, lm = agent(calls(LOOK), calls(SUBMIT), native=True)
        with context(adapter=adapter):
            made = module(question="What colour?")
        assert (made.answer, made.termination_reason) == ("blue", "submit")
        assert [tool["function"]["name"] for tool in lm.calls[0].options["tools"]] == ["look", "submit"]
        assert lm.calls[0].options == lm.calls[1].options
        asked, assistant, tool = lm.calls[1].tail[:3]
        assert asked == lm.calls[0].tail[0]
        assert assistant.extra["tool_calls"][0]["id"] == tool.extra["tool_call_id"] == "p0look"
        assert tool.content == "the sky seen"
        assert "look" not in asked.content
        assert "tools" not in made.history.messages[0]

    def test_without_what_both_need_it_is_text(self):
        for native, adapter in ((True, ChatAdapter()), (False, NATIVE)):
            module, lm = agent(says(SUBMIT), native=native)
            with context(adapter=adapter):
                assert module(question="?").answer == "blue"
            assert "tools" not in lm.calls[0].options

    def test_the_last_turn_must_submit(self):
        module, lm = agent(calls(LOOK), calls(SUBMIT), native=True, max_iters=1)
        with context(adapter=NATIVE):
            made = module(question="?")
        assert made.termination_reason == "forced_submit"
        assert lm.calls[1].options["tool_choice"] == {"type": "function", "function": {"name": "submit"}}
        assert lm.calls[1].options["tools"] == lm.calls[0].options["tools"]
        assert len(made.history.messages) == 2

    def test_the_schema_of_submit_is_that_of_the_outputs(self):
        class Item(BaseModel):
            name: str

        class Find(Signature):
            """Find them."""

            text: str = InputField()
            items: list[Item] = OutputField(desc="all of them")
            score: int = OutputField(ge=1, le=5)
            note: str | None = OutputField()

        module = ReActV2(Find, tools=[])
        schema = module.tools["submit"].parameters()
        assert list(schema["properties"]) == ["items", "score", "note"]
        assert schema["properties"]["items"]["description"] == "all of them"
        assert (schema["properties"]["score"]["minimum"], schema["properties"]["score"]["maximum"]) == (1, 5)
        assert schema["required"] == ["items", "score"]
        assert schema["$defs"]["Item"]["properties"]["name"]["type"] == "string"
        lm = ScriptedLM(
            [
                says(("submit", {"items": [{"name": "a"}], "score": 9})),
                says(("submit", {"items": [{"name": "a"}], "score": "4"})),
            ]
        )
        module.set_lm(lm)
        made = module(text="?")
        assert (made.score, made.note) == (4, None)
        assert made["items"] == [Item(name="a")]
        assert results(made.history.messages[0])[0][1] is True
        assert "less than or equal to 5" in results(made.history.messages[0])[0][0]


class TestSubmitting:
    def test_what_is_wrong_with_it_is_shown_to_the_model(self):
        module, lm = agent(
            says(("submit", {})), says(("submit", {"other": "x", "answer": "a"})), says(SUBMIT)
        )
        made = module(question="?")
        assert made.answer == "blue"
        first, second, _ = (results(message)[0][0] for message in made.history.messages)
        assert (
            first == "Execution error in submit: MissingArgument: tool `submit` misses the argument `answer`"
        )
        assert "has no argument `other`" in second
        assert "misses the argument" in lm.calls[1].tail[-2].content

    def test_other_tools_of_the_turn_run_too(self):
        module, _ = agent(says(SUBMIT, LOOK))
        made = module(question="?")
        assert made.answer == "blue"
        assert [value for value, _ in results(made.history.messages[0])] == [
            {"answer": "blue"},
            "the sky seen",
        ]

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ([says(LOOK), says(LOOK)], "max_iters"),
            ([says()], "empty_tool_calls"),
            (["?", "?"], "parse_error"),
        ],
    )
    def test_it_is_asked_for_once_more(self, lines, reason):
        module, lm = agent(*lines, says(LOOK, SUBMIT), max_iters=2)
        made = module(question="?")
        assert (made.answer, made.termination_reason) == ("blue", "forced_submit")
        last = lm.calls[-1].tail[-1].content
        assert "`submit`" in last
        assert "`look`" not in last.split("Answer with")[0].split("[[ ## tools ## ]]")[-1]
        assert [call.name for call in made.history.messages[-1]["tool_calls"]] == ["submit"]

    def test_without_it_there_is_no_answer_but_a_history(self):
        module, _ = agent(says(LOOK), says(LOOK), max_iters=1)
        with pytest.raises(
            ValueError, match="failed to produce final outputs after max_iters: no submit call"
        ) as caught:
            module(question="?")
        assert isinstance(caught.value, NoSubmission)
        module.set_lm(ScriptedLM([says(SUBMIT)]))
        assert module(history=caught.value.history).answer == "blue"

    def test_a_wrong_one_at_the_end_is_told(self):
        module, _ = agent(says(LOOK), says(("submit", {})), max_iters=1)
        with pytest.raises(NoSubmission, match=r"(?s)submit failed.*misses the argument `answer`") as caught:
            module(question="?")
        assert len(caught.value.history.messages) == 2

    def test_an_unreadable_one_at_the_end_is_raised(self):
        module, _ = agent(*["?"] * 9)
        with pytest.raises(AdapterParseError):
            module(question="?")


class TestTools:
    def test_failures_and_unknown_tools_are_results(self):
        def broken():
            raise OSError("no light")

        module, _ = agent(says(("broken", {}), ("nothing", {}), LOOK), says(SUBMIT), tools=[broken, look])
        assert results(module(question="?").history.messages[0]) == [
            ("Execution error in broken: OSError: no light", True),
            ("Unknown tool: nothing", True),
            ("the sky seen", False),
        ]

    def test_reserved_names(self):
        def submit():
            pass

        with pytest.raises(ValueError, match="`submit` is reserved by ReActV2"):
            ReActV2("question -> answer", tools=[submit])
        with pytest.raises(
            ValueError, match=r"Output field name\(s\) `history`, `termination_reason` are reserved"
        ):
            ReActV2("question -> history, termination_reason", tools=[])
        with pytest.raises(SignatureError, match=r"Input field name\(s\) `tools` are reserved by ReActV2"):
            ReActV2("tools -> answer", tools=[])

    def test_names_of_parts(self):
        module, _ = agent()
        assert list(module.dump_state()) == ["react"]
        assert list(module.react.signature.fields) == [
            *("question", "history", "tools", "next_thought", "tool_calls"),
        ]
        assert list(module.tools) == ["look", "submit"]
        assert module.input_names() == ("question", "history")
        assert module.required_names() == ("question",)
        assert module.output_names() == ("answer", "history", "termination_reason")


class TestGoingOn:
    def test_from_a_history_with_a_further_question(self):
        module, lm = agent(says(LOOK), says(SUBMIT), says(("submit", {"answer": "grey"})))
        first = module(question="What colour?")
        before = len(first.history.messages)
        made = module(question="And now?", history=first.history)
        assert (made.answer, len(made.history.messages)) == ("grey", 3)
        assert len(first.history.messages) == before
        assert made.history.messages[2]["question"] == "And now?"
        assert "And now?" in lm.calls[2].tail[-1].content
        assert lm.calls[2].tail[: len(lm.calls[1].tail) - 1] == lm.calls[1].tail[:-1]

    @pytest.mark.parametrize("native", [False, True])
    def test_from_json_in_another_process(self, native):
        lines = [calls(LOOK), calls(SUBMIT)] if native else [says(LOOK), says(SUBMIT)]
        adapter = NATIVE if native else None
        module, lm = agent(*lines, native=native)
        with context(adapter=adapter):
            made = module(question="What colour?")
            text = made.history.model_dump_json()
            again, other = agent(lines[1], native=native)
            going = again(question="And now?", history=json.loads(text))
        assert going.answer == "blue"
        kept = len(lm.calls[1].tail) - 1  # but for what is asked now
        assert other.calls[0].tail[:kept] == lm.calls[1].tail[:kept]

    def test_after_a_turn_that_ended_with_tools(self):
        module, lm = agent(says(LOOK), says(LOOK), max_iters=1)
        with pytest.raises(NoSubmission) as caught:
            module(question="?")
        other, lm = agent(says(SUBMIT))
        assert other(history=caught.value.history).answer == "blue"
        assert "[[ ## question ## ]]\n?" in lm.calls[0].tail[0].content

    def test_without_a_history_inputs_are_needed(self):
        module, lm = agent()
        with pytest.raises(AdapterRenderError, match="input field `question` is missing; given: nothing"):
            module()
        with pytest.raises(ValueError, match=r"no History|valid"):
            module(question="?", history="text")
        assert lm.call_count == 0

    def test_defaults_of_inputs(self):
        class Ask(Signature):
            """Ask."""

            question: str = InputField()
            tone: str = InputField(default="calm")
            answer: str = OutputField()

        module, lm = agent(says(LOOK), says(SUBMIT), signature=Ask)
        made = module(question="?")
        assert made.history.messages[0]["tone"] == "calm"
        assert "calm" in lm.calls[0].tail[0].content
        assert "calm" not in lm.calls[1].tail[-1].content


class TestLongHistories:
    def test_the_oldest_turns_are_not_shown_but_kept(self):
        def reply(request):
            text = "\n".join(str(message.content) for message in request.tail)
            turns = text.count("the sky seen")
            if turns > 2:
                return ContextWindowExceededError("too long")
            assert "What colour?" in text
            return says(SUBMIT) if len(lm.calls) > 6 else says(LOOK)

        module = ReActV2("question -> answer", tools=[look])
        lm = ScriptedLM(reply)
        module.set_lm(lm)
        made = module(question="What colour?")
        assert made.answer == "blue"
        assert len(made.history.messages) == 5

    def test_where_nothing_is_left_to_leave_out_it_is_raised(self):
        module, lm = agent(*[ContextWindowExceededError("too long")] * 4)
        with pytest.raises(ContextWindowExceededError):
            module(question="?")
        assert lm.call_count == 2


class TestManyRows:
    @pytest.mark.parametrize("native", [False, True])
    def test_rows_at_the_same_time_do_not_mix(self, native):
        make = calls if native else says

        def reply(request):
            text = "\n".join(str(message.content) for message in request.tail)
            row = text.split("[[ ## question ## ]]\n")[1].split("\n")[0]
            seen = text.count(f"{row} seen")
            return make(("submit", {"answer": f"{row}: {seen}"}) if seen == 3 else ("look", {"what": row}))

        module = ReActV2("question -> answer", tools=[look])
        module.set_lm((CapableLM if native else ScriptedLM)(reply, latency=0.002))

        async def main():
            return await asyncio.gather(*(module.acall(question=f"row{number:02}") for number in range(40)))

        with context(adapter=NATIVE if native else None):
            made = asyncio.run(main())
        assert [row.answer for row in made] == [f"row{number:02}: 3" for number in range(40)]
        assert all(len(row.history.messages) == 4 for row in made)


def test_a_given_history_is_not_changed():
    module, _ = agent(says(SUBMIT))
    history = History(messages=[{"question": "before", "answer": "x"}])
    module(question="?", history=history)
    assert history.messages == [{"question": "before", "answer": "x"}]


def test_options_of_a_call_go_to_its_predictor():
    module, _ = agent()
    lm = ScriptedLM([says(SUBMIT)])
    module(question="?", lm=lm, config={"temperature": 0.3})
    assert lm.calls[0].options["temperature"] == 0.3


def test_calls_have_ids_of_their_own_in_a_conversation_that_goes_on():
    module, _ = agent(says(LOOK), says(SUBMIT), says(SUBMIT))
    first = module(question="?")
    made = module(question="?", history=first.history)
    ids = [call.id for message in made.history.messages for call in message["tool_calls"]]
    assert ids == ["call_0_0", "call_1_0", "call_2_0"]
    assert all(
        isinstance(call, ToolCall) for message in made.history.messages for call in message["tool_calls"]
    )


BLOCKS = [
    {"type": "thinking", "thinking": "hm", "signature": "S"},
    {"type": "redacted_thinking", "data": "R"},
]


def thought(*given):
    """A turn in the provider's own form, with what it thought."""
    made = calls(*given)
    return made._replace(extra={**made.extra, "reasoning_blocks": BLOCKS, "reasoning_content": "hm"})


class TestThinking:
    """What a provider sent of its thinking goes back with the calls: without it the next turn is refused."""

    def test_with_the_turn_it_belongs_to(self):
        module, lm = agent(thought(LOOK), calls(LOOK), calls(SUBMIT), native=True)
        with context(adapter=NATIVE):
            module(question="q")
        first, second = [m for m in lm.calls[2].messages if m.role == "assistant"]
        assert (first.extra["reasoning_blocks"], first.extra["reasoning_content"]) == (BLOCKS, "hm")
        assert second.extra.keys() == {"tool_calls"}

    def test_from_json_too(self):
        module, _ = agent(thought(LOOK), calls(SUBMIT), native=True)
        again, lm = agent(calls(SUBMIT), native=True)
        with context(adapter=NATIVE):
            history = module(question="q").history
            again(question="and now?", history=json.loads(history.model_dump_json()))
        assert [m.extra.get("reasoning_blocks") for m in lm.calls[0].messages if m.role == "assistant"] == [
            BLOCKS,
            None,
        ]

    def test_in_a_history_of_ones_own(self):
        module, lm = agent(thought(LOOK), calls(SUBMIT), native=True)
        with context(adapter=NATIVE):
            said = module.react(question="q", history=History(), tools=[look])
            turn = {"question": "q", "tool_calls": said.tool_calls}
            results = {"tool_call_results": [{"name": "look", "value": "seen", "call_id": "p0look"}]}
            module.react(history=History(messages=[{**turn, "tool_call_results": results}]), tools=[look])
        (turn,) = [m for m in lm.calls[1].messages if m.role == "assistant"]
        assert turn.extra["reasoning_blocks"] == BLOCKS
        assert said.tool_calls == ToolCalls(tool_calls=said.tool_calls.tool_calls), "no part of the value"
        assert "reasoning" not in said.tool_calls.model_dump_json()

    def test_not_where_a_call_was_not_answered(self):
        two = ToolCalls(tool_calls=[{"name": "look", "id": "a"}, {"name": "look", "id": "b"}])
        said = self.told(tool_calls=two.with_thinking({"reasoning_blocks": BLOCKS}))
        assert [call["id"] for call in said.extra["tool_calls"]] == ["b"], "and not a, by its place"
        assert "reasoning_blocks" not in said.extra

    @pytest.mark.parametrize(
        "junk", [5, {"reasoning_blocks": "x", "reasoning_content": 5}, {"reasoning_blocks": [5]}]
    )
    def test_not_where_it_is_none(self, junk):
        said = self.told(tool_calls=ToolCalls(tool_calls=[{"name": "look", "id": "b"}]), _thinking=junk)
        assert said.extra.keys() == {"tool_calls"}

    def told(self, **turn):
        """The model's turn of a history with a result for the call b."""
        module, lm = agent(calls(SUBMIT), native=True)
        results = {"tool_call_results": [{"name": "look", "value": "seen", "call_id": "b"}]}
        history = History(messages=[{"question": "q", **turn, "tool_call_results": results}])
        with context(adapter=NATIVE):
            module.react(history=history, tools=[look])
        (said,) = [message for message in lm.calls[0].messages if message.role == "assistant"]
        return said
