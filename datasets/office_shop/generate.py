"""Make the labelled files of the office shop from its help pages' questions and its catalogue.

    python datasets/office_shop/generate.py            write the files
    python datasets/office_shop/generate.py --check    exit 1 unless the files are what it makes

The help pages, the questions about them and the catalogue are written by hand. Greetings and slips
around the questions, the mails, the orders and the enquiries are drawn by a seeded generator, so
the files are the same on every machine.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Record = dict[str, Any]

HERE = Path(__file__).resolve().parent
SEED = 41
MAILS, ORDERS, ENQUIRIES = 80, 40, 60
TODAY = date(2027, 3, 1)

GREETINGS = ("Hello, ", "Hi, ", "Good morning, ", "Dear team, ", "Sorry to bother you, ")
CLOSINGS = (" Thank you!", " Thanks in advance.", " Kind regards, Jonas", " Best, Priya", " Many thanks")
WANTS = ("please send us", "we need", "I would like to order", "our office is short of", "please deliver")
WORDS = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905 - as it is read
STRANGE = ("fog machine", "garden gnome", "bottle of gin")  # not in the catalogue
MONTHS = ("January", "February", "March", "April", "May", "June", "July")
CUSTOMERS = ("ida@birch.example", "omar@quill.example", "lena@foxglove.example", "tom@harrow.example")
TOWNS = ("Graz", "Ghent", "Leeds", "Lyon", "Malmö", "Brno")
ABOUT_NUMBER = (
    "Where is my order {number}?",
    "When will order {number} get here?",
    "I have heard nothing of my order {number} yet, what is going on with it?",
    "order no. {number}, any news",
    "Can you tell me whether {number} has left your warehouse?",
)
ABOUT_CUSTOMER = (
    "I cannot find the number of my last order. My address is {customer}. Where is it?",
    "What about the latest order of {customer}?",
)


class Dice:
    """Choices made from ``Random.random()`` alone, the one stream Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self._random() < probability

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All of the items in another order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(len(left))]


def slip(dice: Dice, text: str) -> str:
    """The text with two letters of a longer word exchanged."""
    places = [n for n in range(1, len(text) - 3) if text[n - 1 : n + 3].isalpha()]
    if not places:
        return text
    at = dice.pick(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def roughened(dice: Dice, text: str) -> str:
    """The text as somebody sends it: sometimes with a greeting, a closing, a slip."""
    if dice.chance(0.3):
        text = greeted(dice, text)
    if dice.chance(0.3):
        text += dice.pick(CLOSINGS)
    return slip(dice, text) if dice.chance(0.2) else text


def greeted(dice: Dice, text: str) -> str:
    """The text with a greeting before it."""
    return dice.pick(GREETINGS) + (text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:])


def questions(dice: Dice) -> tuple[list[Record], list[Record]]:
    """For the prompt one question a fact; for the test two, and those that no page answers."""
    pages = json.loads((HERE / "fragments" / "questions.json").read_text(encoding="utf-8"))
    train, test = [], []
    for page, facts in pages.items():
        for answer, *asks in facts:
            first, *others = asks if page else ["", *asks]
            if first:
                train.append({"question": first, "page": page, "answer": answer})
            for ask in others:
                row = {"question": roughened(dice, ask), "page": page or None, "answer": answer or None}
                test.append(row)
    return numbered("t", train), numbered("q", dice.shuffled(test))


def mails(dice: Dice) -> list[Record]:
    """Orders as people write them, with what was ordered; null where that cannot be delivered."""
    with (HERE / "catalogue.csv").open(encoding="utf-8", newline="") as file:
        products = [row["product"] for row in csv.DictReader(file)]
    return numbered("o", [mail(dice, products) for _ in range(MAILS)])


def mail(dice: Dice, products: Sequence[str]) -> Record:
    wanted = dice.shuffled(products)[: 1 + dice.below(3)]
    items = [{"product": product, "quantity": 1 + dice.below(12)} for product in wanted]
    if dice.chance(0.06):
        items.append({"product": dice.pick(STRANGE), "quantity": 1})
    written = [amount(dice, **item) for item in items]
    text = ", ".join(written[:-1]) + (" and " if written[1:] else "") + written[-1]
    text = f"{dice.pick(WANTS)} {text}"
    due, label = "", None
    if dice.chance(0.5):
        due, label = deadline(dice)
        text += f" by {due}"
    possible = items[-1]["product"] in products and "February 30" not in due
    text = text[0].upper() + text[1:] + "."
    if dice.chance(0.4):
        text = greeted(dice, text)
    if dice.chance(0.4):
        text += dice.pick(CLOSINGS)
    return {"mail": text, "ordered": items if possible else None, "due": label if possible else None}


def amount(dice: Dice, product: str, quantity: int) -> str:
    """``two desk lamps``, ``2 x desk lamp``, ``2 desk lapms``."""
    many = product + "s" if quantity > 1 else product
    many = slip(dice, many) if dice.chance(0.12) else many
    way = dice.below(5)
    if way == 0:
        return f"{quantity} x {product}"
    if way == 1:
        return f"{WORDS[quantity]} {many}"
    if way == 2 and quantity == 1:
        return f"{'an' if many[0] in 'aeiou' else 'a'} {many}"
    return f"{quantity} {many}"


def deadline(dice: Dice) -> tuple[str, str]:
    """A day as people write it, and as machines do."""
    if dice.chance(0.06):
        return "February 30, 2027", ""
    day = TODAY + timedelta(days=5 + dice.below(100))
    month = MONTHS[day.month - 1]
    said = (f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", day.isoformat())
    return dice.pick(said), day.isoformat()


def orders(dice: Dice) -> list[Record]:
    """The shop's orders; a parcel is known once it is on its way."""
    made = []
    for n in range(ORDERS):
        status = dice.pick(("packed", "on its way", "on its way", "delivered", "cancelled"))
        sent = status in ("on its way", "delivered")
        made.append(
            {
                "number": str(70100 + 7 * n),
                "customer": dice.pick(CUSTOMERS),
                "status": status,
                "parcel": f"P{dice.below(900_000) + 100_000}" if sent else None,
            }
        )
    return made


def parcels(dice: Dice, known: Sequence[Record]) -> list[Record]:
    """Where the parcels are, and on which day they arrive."""
    return [
        {
            "parcel": order["parcel"],
            "place": dice.pick(TOWNS),
            "arrives": (TODAY + timedelta(days=1 + dice.below(6))).isoformat(),
        }
        for order in known
        if order["status"] == "on its way"
    ]


def enquiries(dice: Dice, known: Sequence[Record], way: Sequence[Record]) -> list[Record]:
    """What customers ask about orders, with what the tools can find out."""
    arrival = {parcel["parcel"]: parcel["arrives"] for parcel in way}
    rows: list[Record] = []
    for _ in range(ENQUIRIES):
        order: Record = dice.pick(known)
        ask = dice.pick(ABOUT_NUMBER)
        if dice.chance(0.2):
            ask = dice.pick(ABOUT_CUSTOMER)
            order = [one for one in known if one["customer"] == order["customer"]][-1]
        elif dice.chance(0.1):
            missing = str(80000 + dice.below(999))
            order = {"number": missing, "customer": "", "status": "unknown", "parcel": None}
        text = ask.format(number=order["number"], customer=order["customer"])
        expected = {"status": order["status"], "arrives": arrival.get(order["parcel"])}
        rows.append({"question": text, "expected": expected})
    return numbered("e", rows)


def numbered(letter: str, rows: Sequence[Record]) -> list[Record]:
    return [{"id": f"{letter}{n:03}", **row} for n, row in enumerate(rows, 1)]


def make() -> dict[str, str]:
    """File name to content."""
    dice = Dice(SEED)
    train, test = questions(dice)
    known = orders(dice)
    way = parcels(dice, known)
    files = {
        "train.jsonl": train,
        "questions.jsonl": test,
        "mails.jsonl": mails(dice),
        "orders.jsonl": known,
        "parcels.jsonl": way,
        "enquiries.jsonl": enquiries(dice, known, way),
    }
    return {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, rows in files.items()
    }


def main(arguments: Sequence[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    differing = []
    for name, content in make().items():
        path, data = HERE / name, content.encode("utf-8")
        if not arguments:
            path.write_bytes(data)
        elif not path.is_file() or path.read_bytes() != data:
            differing.append(name)
    if differing:
        print(f"not what generate.py makes: {', '.join(differing)}; run it without --check", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
