"""Rows as bytes: those that have no form are told from the others, by row and field."""

from __future__ import annotations

from typing import Any

import pytest

from dspy_stream.errors import OutputError
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.sinks.encode import CsvEncoder, Encoder, JsonlEncoder, encode_fit

LONE = "\ud800"
HUGE = 10**5000  # more digits than Python makes into text


def row(n: int, /, fields: dict[Any, Any]) -> Row:
    return Row(f"id{n}", fields, Origin("m", "0", n))


def told(errors: list[OutputError]) -> list[str]:
    assert all(str(error).isascii() for error in errors), "a message that can be printed"
    return [error.row.id for error in errors if error.row is not None]


JSONL = [JsonlEncoder(), JsonlEncoder(row_id=None)]


@pytest.mark.parametrize("encoder", JSONL, ids=["id", "no id"])
@pytest.mark.parametrize(
    "fields",
    [{"a": LONE}, {LONE: 1}, {"a": {LONE: 1}}, {"a": HUGE}, {"a": [HUGE]}, {"a": object()}],
    ids=["value", "name", "nested name", "integer", "nested integer", "object"],
)
def test_json_lines_leave_out_a_row_without_a_form(encoder: JsonlEncoder, fields: dict[Any, Any]) -> None:
    rows = [row(1, {"a": 1}), row(2, fields), row(3, {"a": 3})]
    data, unfit = encode_fit(encoder, rows)
    assert told(unfit) == ["id2"]
    assert data == encoder.encode([rows[0], rows[2]])


@pytest.mark.parametrize("columns", [None, ["a", "b"]])
@pytest.mark.parametrize("value", [LONE, HUGE, [HUGE], object()], ids=["text", "integer", "nested", "object"])
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_csv_leaves_out_a_row_without_a_form(columns: list[str] | None, value: Any, bad: int) -> None:
    encoder = CsvEncoder(columns=columns)
    rows = [row(n, {"a": n, "b": value if n == bad else "x"}) for n in (1, 2, 3)]
    data, unfit = encode_fit(encoder, rows)
    assert told(unfit) == [f"id{bad}"]
    assert f"row id{bad}: the field 'b' cannot be written" in str(unfit[0])
    lines = ["row_id,a,b", *(f"id{n},{n},x" for n in (1, 2, 3) if n != bad)]
    assert data.decode().splitlines() == lines
    assert encoder.encode([row(4, {"a": 4, "b": "y"})]) == b"id4,4,y\n"


def test_a_name_without_a_form_is_no_column_of_csv() -> None:
    encoder = CsvEncoder()
    rows = [row(1, {"a": 1}), row(2, {"a": 2, LONE: 2})]
    data, unfit = encode_fit(encoder, rows)
    assert (told(unfit), data) == (["id2"], b"row_id,a\nid1,1\n")
    data, unfit = encode_fit(encoder, [row(3, {"a": 3, LONE: 3})])
    assert (told(unfit), data) == (["id3"], b"")


def test_a_field_that_only_a_row_without_a_form_has_is_no_error_of_the_flow() -> None:
    data, unfit = encode_fit(CsvEncoder(columns=["a", "b"]), [row(1, {"a": 1}), row(2, {"a": 2, "b": LONE})])
    assert (told(unfit), data) == (["id2"], b"row_id,a,b\nid1,1,\n")


def test_fields_whose_names_are_no_texts() -> None:
    encoder = CsvEncoder()
    assert encoder.encode([row(1, {1: "x"})]) == b"row_id,1\nid1,x\n"
    with pytest.raises(OutputError, match="it has: 1; pass columns"):
        encoder.encode([row(2, {2: "x"})])


@pytest.mark.parametrize("encoder", [JsonlEncoder(columns=["b"]), CsvEncoder(columns=["b"])])
def test_what_is_no_row_s_own_fault_is_raised(encoder: Encoder) -> None:
    with pytest.raises(OutputError, match="no row has the column 'b'"):
        encode_fit(encoder, [row(1, {"a": 1})])


def test_a_column_whose_name_has_no_form_is_told() -> None:
    with pytest.raises(OutputError, match=r"the columns .* cannot be written"):
        CsvEncoder(columns=[LONE]).header()
