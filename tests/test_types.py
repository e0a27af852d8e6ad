"""The values that travel: they are frozen, and turn into JSON and back unchanged."""

import copy
import dataclasses

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.types import Choice, Head, Message, Request, Response, Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ORIGIN = Origin("in.csv", "in.csv", 3, 5)


def changed(value, **changes):
    """Another value; some of them are dataclasses and some are named tuples."""
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **changes)
    return value._replace(**changes)


class TestRequest:
    def test_the_key_does_not_depend_on_where_the_head_ends(self):
        turns = (Message("system", "s"), Message("user", "a"), Message("user", "b"))
        keys = {Request(Head("m", turns[:cut]), turns[cut:]).key() for cut in range(4)}
        assert len(keys) == 1

    def test_the_key_does_not_depend_on_the_order_of_options(self):
        one = Request.of("m", "q", temperature=0.0, top_p=1.0)
        other = Request.of("m", "q", top_p=1.0, temperature=0.0)
        assert one.key() == other.key()

    @pytest.mark.parametrize(
        "other",
        [
            Request.of("m2", "q"),
            Request.of("m", "q2"),
            Request.of("m", "q", temperature=0.0),
            Request.of("m", "q", rollout_id=0),
            Request.of("m", "q", rollout_id=1),
            Request.of("m", (Message("system", "q"),)),
            Request.of("m", (Message("user", "q"), Message("user", ""))),
        ],
    )
    def test_whatever_may_change_the_answer_changes_the_key(self, other):
        assert other.key() != Request.of("m", "q").key()

    def test_cache_does_not_change_the_key_but_the_journal_key(self):
        shared, own = Request.of("m", "q"), Request.of("m", "q", cache=False)
        assert shared.key() == own.key()
        assert shared.journal_key() == shared.key()
        assert own.journal_key() is None
        assert Request(own.head, own.tail, None, False, b"p").journal_key() == b"p"

    def test_another_rollout_is_another_request(self):
        request = Request.of("m", "q")
        before = request.key()
        other = request.with_rollout(3)
        assert (other.rollout_id, request.rollout_id) == (3, None)
        assert other.key() == Request.of("m", "q", rollout_id=3).key() != before == request.key()

    def test_the_key_has_twenty_bytes_and_is_the_same_in_every_version(self):
        request = Request(
            Head("openai/gpt-4o-mini", (Message("system", "Be brief."),), {"n": 2}),
            (Message("user", "hi"),),
            3,
        )
        assert request.key().hex() == GOLDEN_KEY, "journals of earlier versions would not be found"

    @given(
        st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=4), st.data()
    )
    def test_two_conversations_share_a_key_only_if_they_are_the_same(self, turns, data):
        others = data.draw(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), max_size=4))
        one = Request.of("m", tuple(Message(*turn) for turn in turns))
        other = Request.of("m", tuple(Message(*turn) for turn in others))
        assert (one.key() == other.key()) == (turns == others)

    def test_hashing_one_request_leaves_the_head_as_it_was(self):
        head = Head("m", (Message("system", "s"),))
        first = Request(head, (Message("user", "a"),)).key()
        Request(head, (Message("user", "b"),)).key()
        assert Request(head, (Message("user", "a"),)).key() == first


GOLDEN_KEY = "8a0f5ec9f724ff3791895c4e2ed8e1c5b1d86985"


class TestResponse:
    @given(
        st.lists(
            st.tuples(TEXT, st.none() | TEXT, st.none() | st.dictionaries(TEXT, JSON, max_size=3)),
            min_size=1,
            max_size=3,
        ),
        st.integers(0, 10**9),
        st.none() | st.floats(0, 1e6),
    )
    def test_the_journals_form_comes_back(self, choices, tokens, cost):
        made = Response(tuple(Choice(*choice) for choice in choices), Usage(tokens, 1, cost), "m", "r-1")
        assert Response.from_bytes(made.to_bytes()) == changed(made, cached=True)

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"[]", b"nonsense", b'{"c": 1}', b'{"c": [[1]]}', b"null", b"\xff"]
    )
    def test_other_bytes_are_refused(self, data):
        with pytest.raises(ValueError):
            Response.from_bytes(data)

    def test_the_text_is_that_of_the_first_choice(self):
        assert Response((Choice("a"), Choice("b"))).text == "a"


class TestUsage:
    @pytest.mark.parametrize(
        ("one", "other", "total"),
        [(None, None, None), (1.0, None, 1.0), (None, 2.0, 2.0), (1.0, 2.0, 3.0), (0.0, None, 0.0)],
    )
    def test_costs_add_up_where_they_are_known(self, one, other, total):
        made = Usage(1, 2, one) + Usage(3, 4, other)
        assert made == Usage(4, 6, total)
        assert made.total_tokens == 10


class TestRow:
    row = Row("r1", {"text": "hi", "id": "column id", "items": 3}, ORIGIN)

    def test_fields_by_attribute_item_and_get(self):
        assert self.row.text == self.row["text"] == self.row.get("text") == "hi"
        assert self.row.get("nothing") is None
        assert self.row.get("nothing", 5) == 5
        assert "text" in self.row
        assert "nothing" not in self.row

    def test_a_field_never_hides_what_the_row_is(self):
        assert self.row.id == "r1"
        assert self.row["id"] == "column id"

    def test_an_unknown_field_is_named_with_those_there_are(self):
        with pytest.raises(AttributeError, match=r"row r1 has no field 'txt'; it has: text, id, items"):
            _ = self.row.txt
        with pytest.raises(KeyError):
            self.row["txt"]

    def test_with_fields_adds_and_keeps_id_origin_and_raw(self):
        row = Row("r1", {"a": 1}, ORIGIN, b"raw")
        made = row.with_fields(a=2, b=3)
        assert made == Row("r1", {"a": 2, "b": 3}, ORIGIN, b"raw")
        assert row.fields == {"a": 1}
        assert row.replace({"c": 1}) == Row("r1", {"c": 1}, ORIGIN, b"raw")

    def test_can_be_copied(self):
        assert copy.copy(self.row) == self.row
        assert copy.deepcopy(self.row) == self.row

    def test_its_bytes_are_those_it_was_read_as(self):
        assert Row("r", {"a": 1}, ORIGIN, b"a=1").raw_bytes() == b"a=1"
        assert orjson.loads(Row("r", {"a": 1, "o": object}, ORIGIN).raw_bytes())["a"] == 1


class TestDeadLetter:
    def letters(self):
        return DeadLetter(
            "r1", ORIGIN, b"\x00\xff raw", "parse", {"code": "parse", "type": "E", "message": "m"},
            2, "01_step", "digest", "flow", "2026-01-01", "2026-01-02", {"name": "m", "status": 400},
        )  # fmt: skip

    def test_the_envelope_is_json_and_comes_back(self):
        letter = self.letters()
        assert DeadLetter.from_json(orjson.loads(orjson.dumps(letter.to_json()))) == letter

    def test_a_row_without_a_line_has_none_in_its_envelope(self):
        letter = dataclasses.replace(self.letters(), origin=Origin("s", "p", 0))
        assert "line" not in letter.to_json()["source"]
        assert DeadLetter.from_json(letter.to_json()) == letter

    @pytest.mark.parametrize(
        "key", ["row_id", "source", "raw", "stage", "error", "attempts", "flow", "model"]
    )
    def test_a_missing_key_is_named(self, key):
        value = self.letters().to_json()
        del value[key]
        with pytest.raises(ValueError, match=key):
            DeadLetter.from_json(value)

    @pytest.mark.parametrize(("key", "value"), [("raw", "no base64!"), ("source", 3), ("raw", None)])
    def test_a_value_of_the_wrong_kind_is_refused(self, key, value):
        with pytest.raises(ValueError):
            DeadLetter.from_json({**self.letters().to_json(), key: value})


def test_an_origin_says_where_in_words():
    assert str(ORIGIN) == "in.csv, line 5"
    assert str(Origin("list", "", 3)) == "list, row 3"


@pytest.mark.parametrize(
    "value",
    [
        Choice("a"),
        TestDeadLetter().letters(),
        Head("m"),
        Message("user", "a"),
        ORIGIN,
        Response((Choice("a"),)),
        TestRow.row,
        Usage(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_are_immutable_and_slotted(value):
    names = {"Choice": "text", "Usage": "cost", "Response": "choices", "Message": "role"}
    names |= {"Head": "model", "Origin": "name", "Row": "id", "DeadLetter": "row_id"}
    with pytest.raises(AttributeError):
        setattr(value, names[type(value).__name__], "other")
    with pytest.raises((AttributeError, TypeError)):
        value.something_new = 1
    assert not hasattr(value, "__dict__")
