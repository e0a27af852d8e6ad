"""Signatures that nothing could be answered to are refused while the class is built."""

import typing
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest
from pydantic import BaseModel

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.errors import AdapterParseError, SignatureError
from dspy_stream.program import InputField, OutputField, Signature


class Place(typing.TypedDict):
    """Where."""

    name: str


class Trip(typing.TypedDict, total=False):
    days: int
    stops: list[Place]


class Chain(typing.TypedDict):
    next: Optional["Chain"]


class Rooms(BaseModel):
    rooms: "list[Room]"


EARLY = Signature({"q": InputField(), "home": (Rooms, OutputField())})


class Room(BaseModel):
    size: int


STARS = Signature({"text": InputField(), "stars": (int, OutputField(ge=1, le=5))})


@pytest.mark.parametrize(
    ("annotation", "options", "words"),
    [
        (int, {"ge": 5, "le": 1}, "ge=5 and le=1 leave no value"),
        (float, {"gt": 1, "lt": 1}, "gt=1 and lt=1"),
        (float, {"ge": 1, "lt": 1}, "ge=1 and lt=1"),
        (str, {"min_length": 3, "max_length": 2}, "min_length=3 and max_length=2"),
        (Annotated[int, pydantic.Field(ge=5)], {"le": 1}, "ge=5 and le=1"),
    ],
)
def test_limits_that_leave_no_value(annotation, options, words):
    for make in (InputField, OutputField):
        with pytest.raises(SignatureError, match=f"field `n`: {words}"):
            Signature({"q": InputField(), "n": (annotation, make(**options))})


@pytest.mark.parametrize(
    "options", [{"ge": 5, "le": 5}, {"min_length": 0, "max_length": 0}, {"gt": 1, "lt": 2}]
)
def test_limits_that_leave_one(options):
    Signature(
        {"q": InputField(), "n": (list[int] if "min_length" in options else float, OutputField(**options))}
    )


@pytest.mark.parametrize(
    ("annotation", "default", "options"),
    [
        (int, 9, {"le": 1}),
        (int, "x", {}),
        (list[str], "a", {}),
        (Literal["a"], "b", {}),
        (str, "abc", {"max_length": 2}),
    ],
)
def test_a_default_that_may_not_be_answered(annotation, default, options):
    with pytest.raises(SignatureError, match=r"field `n`: the default .* is no .* that may be answered"):

        class Made(Signature):
            q: str = InputField()
            n: annotation = OutputField(default=default, **options)


def test_other_defaults_are_as_in_dspy():
    class Made(Signature):
        q: str = InputField(default=7)
        n: int = OutputField(default=None, ge=1)
        tags: list[str] = OutputField(default_factory=list)
        share: float = OutputField(default=1)

    assert [Made.default_of(name) for name in Made.fields] == [7, None, [], 1]


class TestUpdatedConstraints:
    def test_are_shown_and_enforced(self):
        edited = STARS.with_updated_fields("stars", ge=3, desc="how good")
        assert edited.fields["stars"].json_schema_extra["constraints"] == "from 3 to 5"
        assert "ge" not in edited.fields["stars"].json_schema_extra
        assert "[from 3 to 5]" in ChatAdapter().format(edited, [], {"text": "x"})[0]["content"]
        with pytest.raises(AdapterParseError, match="greater than or equal to 3"):
            ChatAdapter().parse(edited, "[[ ## stars ## ]]\n2")
        assert ChatAdapter().parse(STARS, "[[ ## stars ## ]]\n2") == {"stars": 2}
        assert edited.digest() != STARS.digest()

    def test_take_the_place_of_those_of_their_name(self):
        assert self.words(ge=None) == "at most 5"
        assert self.words(ge=None, le=None) == ""
        assert self.words(gt=2, ge=None, multiple_of=2) == "at most 5, greater than 2, a multiple of 2"

    def test_several_that_pydantic_keeps_in_one_place(self):
        signature = Signature({"q": InputField(), "n": (float, OutputField(allow_inf_nan=False, ge=0))})
        text = Signature({"q": InputField(), "n": (str, OutputField(pattern="a+", max_length=3))})
        assert (
            signature.with_updated_fields("n", allow_inf_nan=None).validator("n").validate_python("inf") > 1
        )
        edited = text.with_updated_fields("n", pattern="b+").validator("n")
        assert edited.validate_python("bb") == "bb"
        for bad in ("aa", "bbbb"):
            with pytest.raises(pydantic.ValidationError):
                edited.validate_python(bad)

    def test_words_of_the_programs_own_stay(self):
        told = Signature(
            {"q": InputField(), "n": (int, OutputField(ge=1, json_schema_extra={"constraints": "few"}))}
        )
        assert told.with_updated_fields("n", ge=2).fields["n"].json_schema_extra["constraints"] == "few"

    def test_that_do_not_fit_are_refused(self):
        with pytest.raises(SignatureError, match="field `stars`: ge=1 and le=0"):
            STARS.with_updated_fields("stars", le=0)
        with pytest.raises(SignatureError, match="field `stars`: str cannot be used"):
            STARS.with_updated_fields("stars", type_=str)
        assert STARS.with_updated_fields("stars", type_=str, ge=None, le=None).validator("stars")

    def words(self, **limits):
        extra: Any = STARS.with_updated_fields("stars", **limits).fields["stars"].json_schema_extra
        return extra.get("constraints", "")


class TestTypedDicts:
    @pytest.mark.parametrize(
        "signature",
        [
            Signature({"q": InputField(), "trips": (list[Trip] | None, OutputField())}),
            Signature("q -> trips: list[Trip]", custom_types={"Trip": Trip}),
        ],
    )
    def test_of_the_standard_library_are_taken(self, signature):
        value = {"trips": [{"days": 3, "stops": [{"name": "Bern"}]}, {}]}
        text = '{"trips": [{"days": "3", "stops": [{"name": "Bern"}]}, {}]}'
        assert JSONAdapter().parse(signature, text) == value
        with pytest.raises(AdapterParseError, match=r"0\.stops\.0\.name: Field required"):
            JSONAdapter().parse(signature, '{"trips": [{"stops": [{}]}]}')

    def test_one_that_holds_itself_is_taken_or_refused_in_the_same_place(self):
        try:
            signature = Signature({"q": InputField(), "chain": (list[Chain], OutputField())})
        except SignatureError as error:
            assert "field `chain`: list[Chain] cannot be used: " in str(error)  # noqa: PT017 - before Python 3.12
        else:
            assert JSONAdapter().parse(signature, '{"chain": [{"next": null}]}') == {
                "chain": [{"next": None}]
            }


def test_a_class_that_is_written_further_down_may_be_named():
    Rooms.model_rebuild()
    assert EARLY.validator("home").validate_python({"rooms": [{"size": 1}]}).rooms == [Room(size=1)]


def test_what_is_checked_once_is_not_checked_again():
    signature = Signature("q -> a: list[int], b: dict[str, int]")
    for edited in (
        signature.with_instructions("x"),
        signature.append("z", OutputField()),
        signature.delete("a"),
        signature.with_updated_fields("b", desc="x"),
        signature.load_state(signature.dump_state()),
    ):
        assert edited.validator("b") is signature.validator("b")
    assert signature.with_updated_fields("b", dict[str, str]).validator("b") is not signature.validator("b")
