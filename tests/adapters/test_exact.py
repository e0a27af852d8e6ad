"""Decimals: what was written is what is read, wherever in a type they stand."""

import json
import re
from decimal import Decimal
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

import dspy_stream as ds
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.values import codec_for


def made_for(annotation, *constraints):
    checked = Annotated[(annotation, *constraints)] if constraints else annotation
    return codec_for(annotation, TypeAdapter(checked), constrained=bool(constraints))


class Bill(BaseModel):
    total: Decimal
    share: float = 0.5


class StrictBill(Bill):
    model_config = ConfigDict(strict=True)


LONG = "123456789012345678.99"


@pytest.mark.parametrize(
    ("annotation", "text", "exact"),
    [
        (Decimal, "{}", "{}"),
        (Decimal, '**"{}"**', "{}"),
        (Decimal | None, "{}", "{}"),
        (list[Decimal], "[{}, 1.10]", "[{}, 1.10]"),
        (dict[str, Decimal | None], "{{'a': {}, 'b': null,}}", "a={} b=None"),
        (Decimal | str, "{}", "{}"),
        (Bill, '{{"total": {}, "share": 0.25}}', "total={} share=0.25"),
        (list[Bill | None], 'So: [{{"total": {}}}]', "[Bill(total={}, share=0.5)]"),
        (StrictBill, '{{"total": {}, "share": 0.25}}', "total={} share=0.25"),
    ],
)
def test_decimals_keep_every_digit(annotation, text, exact):
    made = made_for(annotation)
    for number in (LONG, "1.10", "-0.00", "2E+5"):
        read = made.read(text.format(number))
        assert exact.format(number) in _without_types(read)
        # Written as text, so that no reader of JSON takes it for a float, and read back the same.
        assert made.exact
        assert _without_types(made.read(made.show(read))) == _without_types(read)
        assert _without_types(made.accept(made.plain(read))) == _without_types(read)
    assert made_for(Decimal).read("1,234,567.10") == Decimal("1234567.10")


def _without_types(value):
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return re.sub(r"Decimal\('(.*?)'\)", r"\1", str(value))


@pytest.mark.parametrize(
    "adapter", [ds.JSONAdapter(), ds.ChatAdapter()], ids=["asked for", "instead of markers"]
)
def test_a_number_in_the_place_of_a_text_is_shown_as_it_was_written(adapter):
    signature = ds.Signature(
        "q -> version: str, note: str | None, share: float, price: Decimal", custom_types={"Decimal": Decimal}
    )
    answer = '{"version": 1.10, "note": 2.50, "share": 0.50, "price": 3.10}'
    with ds.context(adapter=adapter, lm=ds.ScriptedLM([answer])):
        made = ds.Predict(signature)(q="q")
    assert (made.version, made.note, made.share, made.price) == ("1.10", "2.50", 0.5, Decimal("3.10"))
    assert type(made.share) is float


def test_constraints_of_decimals_see_what_was_written():
    made = made_for(Decimal, Field(decimal_places=2, max_digits=20))
    assert str(made.read(LONG)) == LONG
    for bad in ("0.123", "1234567890123456789.99"):
        with pytest.raises(ValueProblem):
            made.read(bad)


def test_a_flow_writes_them_as_text_from_the_model_and_from_the_journal(tmp_path):
    bill = ds.Signature(
        {"text": ds.InputField(), "bill": (Bill, ds.OutputField()), "sum": (Decimal, ds.OutputField())}
    )
    out = tmp_path / "out.jsonl"
    flow = (
        ds.Stream.from_iterable([{"text": "x"}], name="bills")
        .through(ds.Predict(bill))
        .map(lambda row: row.with_fields(double=row.sum * 2, inner=row.bill.total))
        .write(out)
    )
    answer = f'[[ ## bill ## ]]\n{{"total": {LONG}}}\n\n[[ ## sum ## ]]\n1.10'
    for lm in (ds.ScriptedLM([answer], cache=True), ds.ScriptedLM([answer], cache=True)):
        report = flow.run(lm=lm, state=tmp_path / "state", fresh=True)
        assert report.rows_out == 1
        row = json.loads(out.read_text())
        assert (row["bill"]["total"], row["sum"], row["double"], row["inner"]) == (LONG, "1.10", "2.20", LONG)
    assert (report.calls, lm.call_count) == (0, 0)
