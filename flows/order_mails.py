"""Read orders out of mails: typed, checked, repaired once, and priced.

    dspy-stream run flows/order_mails.py
    dspy-stream run flows/order_mails.py --input my.csv --output mine.jsonl --lm openai/gpt-4o-mini

The types refuse what is not in the catalogue, a quantity of zero, a day that does not exist. The model is
then shown its mistake and answers once more; what is wrong still becomes a dead letter. Offline the rules in
`stand_ins.py` take the place of a model.
"""

import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

import dspy_stream as ds

sys.path.append(str(Path(__file__).parent))
from stand_ins import order_rules

DATA = Path(__file__).resolve().parent.parent / "datasets" / "office_shop"
catalogue = ds.load_examples(DATA / "catalogue.csv", inputs=["product"])
prices = {row.product: Decimal(row.price) for row in catalogue}


class Item(BaseModel):
    """One line of an order."""

    product: Literal[tuple(prices)]
    quantity: int = Field(ge=1, le=500)


class ReadOrder(ds.Signature):
    """Read what the mail orders, in the words of the catalogue, and the day by which it is wanted."""

    mail: str = ds.InputField()
    items: list[Item] = ds.OutputField(min_length=1)
    due: date | None = ds.OutputField(desc="null where the mail names no day")


def price(items):
    """What the order costs."""
    return {"total": sum(prices[item.product] * item.quantity for item in items)}


reply = ds.Format("Thank you for your order of {total} euros.", output="reply")
orders = ds.Program(read=ds.Predict(ReadOrder).using(timeout=120), price=price, reply=reply)


def same(row):
    """Whether the order is the labelled one; None where there is no label."""
    read = [item.model_dump() for item in row["items"]]
    return (read, row.due and str(row.due)) == (row.ordered, row.expected) if row.get("ordered") else None


flow = (
    ds.Stream.read(DATA / "mails.jsonl", name="order_mails")
    .rename(due="expected")
    .through(orders, name="orders")
    .measure(accuracy=same)
    .using(lm=ds.ScriptedLM(order_rules(prices), model="scripted/rules", cache=True))
    .write("out/order_mails.jsonl", dead_letters="out/order_mails.dead.jsonl")
)
