"""Tell customers where their orders are: an agent looks them up with tools, row by row.

    dspy-stream run flows/order_agent.py
    dspy-stream run flows/order_agent.py --input my.csv --output mine.jsonl --lm openai/gpt-4o-mini

Each turn of the agent is a call that the journal keeps: after a crash no turn is paid twice. Tools run
again when a row does: let them look things up, or do what may be done twice. A tool that fails tells the
model why. Offline the rules in `stand_ins.py` choose the tools.
"""

import sys
from datetime import date
from pathlib import Path
from typing import Literal

import dspy_stream as ds

sys.path.append(str(Path(__file__).parent))
from stand_ins import agent_rules

DATA = Path(__file__).resolve().parent.parent / "datasets" / "office_shop"


# Files in the place of a data base.
orders = {row.number: row.toDict() for row in ds.load_examples(DATA / "orders.jsonl", inputs=["number"])}
parcels = {row.parcel: row.toDict() for row in ds.load_examples(DATA / "parcels.jsonl", inputs=["parcel"])}


def find_order(number: str) -> dict:
    """The order of this number: its status, and the parcel where it has been sent."""
    return orders[number]


def latest_order(customer: str) -> dict:
    """The last order of the customer with this mail address."""
    return [order for order in orders.values() if order["customer"] == customer][-1]


def track_parcel(parcel: str) -> dict:
    """Where a parcel is, and on which day it arrives."""
    return parcels[parcel]


class Enquiry(ds.Signature):
    """Find out what has become of the customer's order."""

    question: str = ds.InputField()
    status: Literal["packed", "on its way", "delivered", "cancelled", "unknown"] = ds.OutputField()
    arrives: date | None = ds.OutputField(desc="null unless the parcel is on its way")


agent = ds.ReAct(Enquiry, tools=[find_order, latest_order, track_parcel], max_iters=5)
sent = ds.Format("Your order is on its way and arrives on {arrives}.", output="reply")
lost = ds.Format("We cannot find this order. A colleague will write to you.", output="reply")
other = ds.Format("Your order is {status}.", output="reply")
reply = ds.Route("status", {"on its way": sent, "unknown": lost}, default=other)
desk = ds.Program(agent=agent.using(timeout=300, outputs=["status", "arrives"]), reply=reply)


def right(row):
    """Whether status and day are the labelled ones; None where there is no label."""
    found = {"status": row.status, "arrives": row.arrives and str(row.arrives)}
    return found == row.expected if row.get("expected") else None


flow = (
    ds.Stream.read(DATA / "enquiries.jsonl", name="order_agent")
    .through(desk, name="desk", capacity=32)
    .measure(accuracy=right)
    .using(lm=ds.ScriptedLM(agent_rules, model="scripted/rules", cache=True))
    .write("out/order_agent.jsonl", dead_letters="out/order_agent.dead.jsonl")
)
