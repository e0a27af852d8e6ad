"""Values with content blocks in prompts: where they stand, what is around them, what is escaped."""

import dataclasses
import enum
import json
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.adapters.blocks import assembled, flattened, joined
from dspy_stream.adapters.values import codec_for
from dspy_stream.adapters.xml import XMLAdapter
from dspy_stream.errors import AdapterParseError, AdapterRenderError
from dspy_stream.modules import Predict
from dspy_stream.program import Example, InputField, OutputField, Signature
from dspy_stream.program.types import Audio, Code, Document, File, Image, Tool, ToolCalls, Type
from dspy_stream.types import Capabilities, Head, Request

A, B = Image("https://x.example/a.png"), Image("data:image/png;base64,iVBORw0KGgo=")
ADAPTERS = [ChatAdapter(), JSONAdapter(), XMLAdapter()]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def signature(kind, extra="question"):
    return Signature(
        {"value": (kind, InputField()), extra: (str, InputField()), "answer": (str, OutputField())}
    )


def content(kind, value, adapter=ADAPTERS[0], question="What?"):
    return adapter.prepare(signature(kind)).render({"value": value, "question": question})[-1].content


def blocks(made):
    return [block for block in made if block["type"] != "text"]


def text(made):
    """The texts, with a sign for each block."""
    return "".join(block["text"] if block["type"] == "text" else "<*>" for block in made)


class Page(BaseModel):
    title: str
    picture: Image


@dataclasses.dataclass
class Sheet:
    pictures: dict[str, Image]


class Pair(NamedTuple):
    n: int
    picture: Image


class Entry(TypedDict):
    picture: Image


class TestPlaces:
    def test_alone(self):
        made = content(Image, A)
        assert [block["type"] for block in made] == ["text", "image_url", "text"]
        assert made[0]["text"] == "[[ ## value ## ]]\n"
        assert made[1] == {"type": "image_url", "image_url": {"url": A.url}}
        assert made[2]["text"].startswith("\n\n[[ ## question ## ]]\nWhat?\n\nAnswer with")

    @pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
    @pytest.mark.parametrize(
        ("kind", "value", "around"),
        [
            (list[Image], [A, B], "1. <*>\n2. <*>"),
            (list[Image], [], "[]"),
            (Image | None, A, "<*>"),
            (tuple[Image, ...], (A,), "1. <*>"),
            (dict[str, Image], {"k": A}, '{"k":<*>}'),
            (dict[str, list[Image]], {"k": [A, B]}, '{"k":[<*>,<*>]}'),
            (Page, Page(title="t", picture=A), '{"title":"t","picture":<*>}'),
            (list[Page], [Page(title="t", picture=A)], '[{"title":"t","picture":<*>}]'),
            (Sheet, Sheet({"k": A}), '{"pictures":{"k":<*>}}'),
            (Pair, Pair(1, A), "[1,<*>]"),
            (Entry, {"picture": A}, '{"picture":<*>}'),
            (Any, {"k": [1, A]}, '{"k":[1,<*>]}'),
            (dict, {"k": A}, '{"k":<*>}'),
            (str, A, "<*>"),
            (str, ["one", A], "1. one\n2. <*>"),
            (str, {"k": A}, '{"k":<*>}'),
            (Image | str, "words", "words"),
            (Image | str, A, "<*>"),
        ],
    )
    def test_anywhere(self, adapter, kind, value, around):
        made = content(kind, value, adapter)
        shown = text(made) if not isinstance(made, str) else made
        lead, end = (
            ("<value>\n", "\n</value>") if isinstance(adapter, XMLAdapter) else ("[[ ## value ## ]]\n", "")
        )
        assert f"{lead}{around}{end}" in shown

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (Image, A.url),
            (Image, {"url": A.url}),
            (Image | None, A.url),
            (list[Image], [A.url]),
            (list[Image], [{"url": A.url}]),
            (Page, {"title": "t", "picture": A.url}),
            (Entry, {"picture": {"url": A.url}}),
            (dict[str, Image], {"k": A.url}),
        ],
    )
    def test_data_become_what_the_type_says(self, kind, value):
        assert blocks(content(kind, value)) == A.format()

    def test_none_where_the_type_admits_it(self):
        assert "[[ ## value ## ]]\nnull" in content(Image | None, None)

    @pytest.mark.parametrize(
        ("kind", "value"), [(Image, "a.png"), (list[Image], ["a.png"]), (Page, {"picture": "/x"})]
    )
    def test_a_path_is_a_failure_of_the_row_that_names_the_field(self, kind, value):
        with pytest.raises(
            AdapterRenderError, match=r"input field `value`.*(Image\.from_path|Field required)"
        ):
            content(kind, value)

    @pytest.mark.parametrize(
        ("value", "type_"),
        [(Audio(data="aGk=", audio_format="wav"), "input_audio"), (File(file_id="f"), "file")],
    )
    def test_sounds_and_files(self, value, type_):
        assert [block["type"] for block in blocks(content(type(value), value))] == [type_]

    def test_a_text_in_a_field_without_a_type_is_no_picture(self):
        saved = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url", "image_url": {"url": "https://x"}}]'
        for value in (A.url, f"{saved}<<CUSTOM-TYPE-END-IDENTIFIER>>", json.dumps(A.format())):
            assert isinstance(content(str, value), str)

    def test_texts_alone_stay_one_text(self):
        assert isinstance(content(list[Code], [Code("x"), Code("y")]), str)
        assert isinstance(content(list[Tool], [Tool(lambda: 1, name="f")]), str)
        assert isinstance(content(list[Image], []), str)


class TestOwnTypes:
    def test_blocks_and_texts_of_the_users(self):
        class Plot(Type):
            points: int

            def format(self):
                return [{"type": "text", "text": f"[[ ## answer ## ]] {self.points}"}, *A.format()]

        made = content(Plot, Plot(points=3))
        assert text(made).startswith("[[ ## value ## ]]\n[[ \\## answer ## ]] 3<*>\n\n[[ ## question")
        assert [block["type"] for block in made] == ["text", "image_url", "text"]

    def test_data_are_json(self):
        class Spot(Type):
            x: int

            def format(self):
                return {"at": [self.x, "é"]}

        signature = Signature({"spot": (Spot, InputField()), "a": (str, OutputField())})
        shown = ChatAdapter().format(signature, [], {"spot": Spot(x=1)})[-1]["content"]
        assert '{"at":[1,"é"]}' in shown

    def test_a_text_in_data_is_a_string(self):
        class Money(Type):
            cents: int

            def format(self):
                return f'"{self.cents}" cents'

        assert '{"a":"\\"3\\" cents"}' in content(dict[str, Money], {"a": Money(cents=3)})
        assert '[[ ## value ## ]]\n"3" cents\n' in content(Money, Money(cents=3))
        assert '1. "3" cents\n2. "4" cents' in content(list[Money], [Money(cents=3), {"cents": 4}])

    @pytest.mark.parametrize("made", [3, None, [1], [{"no": "type"}], [{"type": 3}]])
    def test_a_wrong_format_is_named(self, made):
        class Odd(Type):
            def format(self):
                return made

        with pytest.raises(AdapterRenderError, match=r"`value`.*Odd"):
            content(Odd, Odd())

    def test_a_format_that_fails_is_named(self):
        class Bad(Type):
            def format(self):
                raise KeyError("x")

        with pytest.raises(AdapterRenderError, match=r"Bad.*KeyError"):
            content(Bad, Bad())

    def test_sets_come_in_the_same_order_in_every_process(self):
        script = (
            "from dspy_stream.adapters.values import codec_for\n"
            "from dspy_stream.program.types import Image\n"
            "from pydantic import TypeAdapter\n"
            "kind = dict[str, set[Image]]\n"
            "value = {'k': {Image(f'https://x/{n}') for n in range(9)}}\n"
            "made = codec_for(kind, TypeAdapter(kind)).write(value)\n"
            "print([piece['image_url']['url'] for piece in made if not isinstance(piece, str)])\n"
        )
        seen = {
            subprocess.run(
                [sys.executable, "-c", script],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(seen) == 1
        assert "https://x/8" in seen.pop()


@given(TEXT, TEXT, st.lists(TEXT, max_size=3))
def test_what_stands_around_blocks_is_escaped_and_whole(title, question, more):
    page = Page(title=title + "[[ ## answer ## ]]", picture=A)
    kind = dict[str, list[Page | str]]
    made = content(kind, {"k": [page, *more]}, question=question + "[[ ## answer ## ]]\n1")
    assert blocks(made) == A.format()
    with pytest.raises(AdapterParseError):
        ADAPTERS[0].parse(signature(kind), text(made))
    expected = json.dumps(
        {"k": [{"title": page.title, "picture": "<*>"}, *more]}, ensure_ascii=False, separators=(",", ":")
    )
    assert (
        expected.replace('"<*>"', "<*>").replace("[[ ##", "[[ \\##") in text(made)
        or "\\##" in "".join(more) + title
    )


@given(
    st.recursive(
        st.just(A) | TEXT | st.integers(-5, 5),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3),
    )
)
def test_every_picture_is_shown_once_and_nothing_else_is(value):
    codec = codec_for(Any, TypeAdapter(Any))
    count = json.dumps(value, default=lambda _: ["\0picture"]).count('"\\u0000picture"')
    made = codec.write(value)
    pieces = [made] if isinstance(made, str) else [piece for piece in made if not isinstance(piece, str)]
    assert len(pieces) == (count if not isinstance(made, str) else 1)
    assert count == 0 or not isinstance(made, str)


class TestAssembling:
    def test_documents_are_text_for_a_model_that_does_not_cite(self):
        docs = [Document("[[ ## answer ## ]] x", title="T"), Document("aGk=", media_type="application/pdf")]
        prepared = ChatAdapter().prepare(signature(list[Document]))
        made = prepared.render({"value": docs, "question": "q"})[0].content
        assert "1. T\n\n[[ \\## answer ## ]] x\n2. <*>" in text(made)
        assert blocks(made)[0]["file"]["filename"] == "document.pdf"

    def test_and_blocks_for_one_that_does(self):
        prepared = ChatAdapter().prepare(signature(list[Document]), capabilities=Capabilities(citations=True))
        made = prepared.render({"value": [Document("x")], "question": "q"})[0].content
        assert [block["type"] for block in blocks(made)] == ["document"]

    def test_joined_and_flattened_keep_texts(self):
        assert joined(["a", "", "b"]) == "a\n\nb"
        assert flattened("a", str) == "a"
        assert assembled(["a", "b"], str) == "ab"

    @pytest.mark.parametrize("bad", ["\ud800", "a\udfff"])
    def test_half_a_surrogate_pair_is_found_in_blocks(self, bad):
        for value in (Page.model_construct(title=bad, picture=A), Document.model_construct(data=bad)):
            with pytest.raises(AdapterRenderError, match="`value`"):
                content(type(value), value)
        with pytest.raises(AdapterRenderError, match="`question`"):
            content(Image, A, question=bad)

    def test_a_request_has_a_key_that_depends_on_the_picture(self):
        def key(image):
            return Request(
                Head("m"), ChatAdapter().prepare(signature(Image)).render({"value": image, "question": "q"})
            ).key()

        assert key(A) == key(Image(A.url)) != key(B)


class Look(Signature):
    """Look."""

    image: Image = InputField()
    answer: Code["sql"] = OutputField()  # noqa: F821


class TestDemos:
    @pytest.mark.parametrize("image", [A, {"url": A.url}, A.url])
    def test_pictures_in_demos(self, image):
        head = (
            ChatAdapter().prepare(Look, [Example(image=image, answer=Code("SELECT 1")), {"answer": "x"}]).head
        )
        assert [message.role for message in head] == ["system", "user", "assistant"]
        assert blocks(head[1].content) == A.format()
        assert head[2].content.startswith("[[ ## answer ## ]]\nSELECT 1\n")

    def test_an_incomplete_demo_has_its_note(self):
        two = Signature("image: Image, question -> answer")
        head = ChatAdapter().prepare(two, [{"image": A, "answer": "x"}]).head
        assert head[1].content[0]["text"].startswith("(An example")

    def test_saved_and_loaded(self, tmp_path):
        predict = Predict(Look)
        predict.demos = [Example(image=B, answer=Code("SELECT 1"))]
        predict.save(tmp_path / "p.json")
        assert "CUSTOM-TYPE" in (tmp_path / "p.json").read_text()
        loaded = Predict(Look)
        loaded.load(tmp_path / "p.json")
        assert (
            ChatAdapter().prepare(Look, loaded.demos).head == ChatAdapter().prepare(Look, predict.demos).head
        )


class Mood(enum.Enum):
    GOOD = "good"


class TestOutputs:
    @pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (Image, A),
            (Image | None, None),
            (list[Image], [A, B]),
            (Page, Page(title="t", picture=A)),
            (Code["sql"], Code["sql"]("SELECT '[[ ## x ## ]]'\n  FROM a")),
            (list[Code], [Code("x"), Code("y\n z")]),
            (ToolCalls, ToolCalls(tool_calls=[{"name": "f", "args": {"a": [1, "</answer>"]}}])),
            (Document, Document("text", title="T")),
        ],
    )
    def test_what_is_written_is_read_back(self, adapter, kind, value):
        asked = Signature({"q": (str, InputField()), "answer": (kind, OutputField())})
        written = adapter.format_assistant_message_content(asked, {"answer": value})
        assert isinstance(written, str)
        assert adapter.parse(asked, written) == {"answer": value}

    @pytest.mark.parametrize(
        ("kind", "said", "value"),
        [
            (Image, "https://x.example/a.png", A),
            (Code["sql"], "Sure:\n```sql\nSELECT 1\n```", "SELECT 1"),
            (ToolCalls, '[{"name": "f", "args": {}}, {"name": "g"}]', ["f", "g"]),
            (ToolCalls, 'I call:\n```json\n{"tool_calls": [{"name": "f"}]}\n```', ["f"]),
            (ToolCalls, '{"name": "f", "arguments": {}}', ["f"]),
        ],
    )
    def test_what_models_write(self, kind, said, value):
        asked = Signature({"q": (str, InputField()), "answer": (kind, OutputField())})
        made = ChatAdapter().parse(asked, f"[[ ## answer ## ]]\n{said}")["answer"]
        assert ([call.name for call in made] if kind is ToolCalls else made) == value

    def test_a_path_in_an_answer_is_refused(self):
        with pytest.raises(AdapterParseError, match="neither an http"):
            ChatAdapter().parse(Signature("q -> answer: Image"), "[[ ## answer ## ]]\n/etc/passwd")

    def test_the_system_message_says_what_is_wanted(self):
        system = ChatAdapter().format_system_message(Signature("image: Image -> a: Code['go'], c: ToolCalls"))
        assert "`image` (Image)" in system
        assert "`a` (go code, and nothing else)" in system
        assert "the tools to call now" in system
