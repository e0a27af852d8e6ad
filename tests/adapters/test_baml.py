import enum
import json
from datetime import date
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from dspy_stream.adapters import BAMLAdapter, JSONAdapter
from dspy_stream.adapters.sketch import sketch
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import Code


class Status(enum.Enum):
    ACTIVE = "active"
    GONE = "gone"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Visit(BaseModel):
    """One visit to the practice."""

    day: str = Field(description="as\n  written", pattern=r"\d+")
    cost: float = Field(0.0, ge=0)
    status: Status


class Patient(BaseModel):
    name: str = Field(description="full name")
    age: int | None = None
    visits: list[Visit]
    last: Visit
    tags: list[str] = []
    more: dict[str, Any]
    place: tuple[float, float]


class Node(BaseModel):
    value: int
    parent: "Node | None" = None
    children: list["Node"] = []


class Extract(Signature):
    """Read a letter."""

    letter: str = InputField()
    patient: Patient = OutputField(desc="whom it is about")
    kind: Literal["report", "bill"] = OutputField()
    urgency: int | None = OutputField(ge=1, le=5)


SKETCH = """\
// One visit to the practice.
Visit = {
  // as written
  // matches \\d+
  day: string,
  // at least 0, default 0.0
  cost?: float,
  status: "active" | "gone",
}

{
  patient: {
    // full name
    name: string,
    age?: int | null,
    visits: Visit[],
    last: Visit,
    // default []
    tags?: string[],
    more: {[key: string]: any},
    place: [float, float],
  },
  kind: "report" | "bill",
  urgency: int | null,
}"""

VALUES = {
    "patient": Patient(
        name="n", visits=[], last=Visit(day="1", status=Status.GONE), more={"x": [1]}, place=(1.0, 2.0)
    ),
    "kind": "bill",
    "urgency": None,
}


def of(kind: Any) -> type[Signature]:
    return Signature({"text": InputField(), "answer": (kind, OutputField())})


def shape(kind: Any) -> str:
    return sketch(of(kind))


def test_the_whole_sketch():
    assert sketch(Extract) == SKETCH


def test_the_prompt_shows_it_once_with_descriptions_and_without_schemas():
    system = BAMLAdapter().format_system_message(Extract)
    assert system.count(SKETCH) == 1
    assert "- `patient`: whom it is about\n- `kind`\n- `urgency` [from 1 to 5]" in system
    assert "schema" not in system
    assert "Read a letter." in system
    assert len(system) < len(JSONAdapter().format_system_message(Extract)) * 0.6


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (str, "string"),
        (bool, "bool"),
        (list[int | str], "(int | string)[]"),
        (list[list[float]], "float[][]"),
        (Any, "any"),
        (list, "any[]"),
        (dict, "{[key: string]: any}"),
        (dict[str, list[int]], "{[key: string]: int[]}"),
        (Status | None, '"active" | "gone" | null'),
        (Literal["a;", 1, None], '"a;" | 1 | null'),
        (bytes, "string"),
    ],
)
def test_types(kind, line):
    assert shape(kind) == f"{{\n  answer: {line},\n}}"


def test_joined_members_are_numbers_with_their_meaning_above():
    assert shape(Rights) == "{\n  // the sum of one or more of: 1 (READ); 2 (WRITE)\n  answer: int,\n}"


def test_what_a_text_is_stands_with_its_description():
    code = Signature(
        {"text": InputField(), "code": (Code["python"], OutputField()), "day": (date, OutputField())}
    )
    described = BAMLAdapter().format_field_description(code)
    assert "- `code` (python code" in described
    assert "- `day` (a date such as" in described
    assert sketch(code) == "{\n  code: string,\n  day: string,\n}"


def test_the_documentation_of_a_type_stands_above_it_in_one_line():
    class Trip(BaseModel):
        """Where to,
        and when.

        The rest is for programmers.
        """

        to: str

    assert shape(Trip) == "{\n  // Where to, and when.\n  answer: {\n    to: string,\n  },\n}"


def test_a_type_that_holds_itself_is_written_once():
    text = shape(Node)
    assert text.count("Node = {") == 1
    assert "children?: Node[]," in text
    assert "parent?: Node | null," in text


def test_types_that_hold_each_other():
    class Left(BaseModel):
        right: "Right"

    class Right(BaseModel):
        left: list[Left]

    Left.model_rebuild(_types_namespace={"Right": Right})
    text = shape(list[Left])
    assert text.count("Left = {") == text.count("Right = {") == 1


def test_deep_types_are_named_and_not_set_in_for_ever():
    kind: Any = int
    for level in range(40):
        kind = create_model(f"Level{level}", inner=(kind, ...))
    text = shape(kind)
    assert max(len(line) - len(line.lstrip()) for line in text.splitlines()) <= 16
    assert len(text) < 4000


def test_a_lattice_of_types_does_not_grow():
    kind: Any = int
    for level in range(25):
        kind = create_model(f"Level{level}", left=(kind, ...), right=(kind, ...))
    assert len(shape(kind)) < 4000


def test_answers_are_read_as_json():
    adapter = BAMLAdapter()
    text = adapter.format_assistant_message_content(Extract, VALUES)
    assert adapter.parse(Extract, f"Here:\n```json\n{text}\n```") == VALUES
    json.loads(text)
    with pytest.raises(AdapterParseError, match="kind: 'x' is not one of report, bill") as caught:
        adapter.parse(Extract, text.replace('"bill"', '"x"'))
    assert caught.value.adapter_name == "BAMLAdapter"


def test_demos_with_missing_fields():
    demos = [{"letter": "a", "kind": "report"}, {"letter": "b", **VALUES}, {"letter": "only"}]
    head = BAMLAdapter().prepare(Extract, demos).head
    assert [message.role for message in head] == ["system", "user", "assistant", "user", "assistant"]
    assert json.loads(head[2].content)["kind"] == "report"
    assert "unknown" in json.loads(head[2].content)["patient"]
    assert BAMLAdapter().parse(Extract, head[4].content) == VALUES
