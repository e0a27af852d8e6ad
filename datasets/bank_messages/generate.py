"""Make train.jsonl and test.jsonl from the hand-written fragments.

    python datasets/bank_messages/generate.py            write both files
    python datasets/bank_messages/generate.py --check    exit 1 unless the files are what it makes

Every message has a sentence of its own, which is used once, in one split. Greeting, side remark,
closing, facts (names, places, amounts) and slips of the keyboard are drawn around it by a seeded
generator, so the files are the same on every machine.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
SEED = 20
TRAIN_PER_INTENT = 10
PERCENT_TOPIC, PERCENT_ASK = 38, 44  # messages that say in so many words what they are about
INTENTS = (
    "card_arrival",
    "lost_or_stolen_card",
    "pending_transfer",
    "refund_request",
    "wrong_fee",
    "exchange_rate",
    "change_address",
    "close_account",
    "forgotten_pin",
    "failed_cash_withdrawal",
)
ALONE = "= "  # begins a sentence that no side remark suits, such as a bereavement

PLACES = (
    ("Istanbul", "Turkey", "Turkish lira"),
    ("Osaka", "Japan", "yen"),
    ("Kraków", "Poland", "zloty"),
    ("Zürich", "Switzerland", "Swiss francs"),
    ("Bergen", "Norway", "Norwegian kroner"),
    ("Oaxaca", "Mexico", "Mexican pesos"),
    ("Brno", "Czechia", "Czech koruna"),
    ("Pune", "India", "rupees"),
    ("Montréal", "Canada", "Canadian dollars"),
    ("Chiang Mai", "Thailand", "baht"),
    ("Szeged", "Hungary", "forints"),
    ("Fès", "Morocco", "dirhams"),
    ("Malmö", "Sweden", "Swedish kronor"),
    ("Cape Town", "South Africa", "rand"),
)
SLOTS = {
    "her": ("Agnieszka", "Siobhán", "Ayşe", "Noor", "Mei", "Ingrid", "Zsófia", "Chiara", "Fatima", "Helen"),
    "him": ("Björn", "Tomasz", "Kwame", "Luís", "Ahmed", "Sanjay", "Jürgen", "Mateo", "Piotr", "George"),
    "name": ("Yuki", "Robin", "Andrea", "Sasha", "Dominique", "Kim", "Ms Okafor", "Mr Hansen"),
    "me": (
        "Leila",
        "Paweł",
        "Nia",
        "Oskar",
        "Thi Mai",
        "R. Banerjee",
        "J. Novák",
        "Conor",
        "Ana Sofía",
        "Ruth",
    ),
    "town": ("Leeds", "Ghent", "Graz", "Cork", "Tartu", "Porto", "Lyon", "Bremen"),
    "shop": (
        "Bellmont",
        "Tessio",
        "GreenCart",
        "Kaufhold",
        "Ottiva",
        "Marlow & Finch",
        "Pixelhaus",
        "Sofa Loft",
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "month": ("January", "February", "March", "May", "June", "August", "September", "October", "November"),
    "days": (
        "eight days",
        "two weeks",
        "12 days",
        "a week",
        "ten days",
        "three weeks",
        "9 days",
        "a fortnight",
    ),
}
MONEY = (("£", ""), ("€", ""), ("", " euros"), ("EUR ", ""), ("", " EUR"), ("", " pounds"))
AMOUNTS = ("20", "40", "50", "60", "80", "100", "120", "150", "180", "200", "240", "300", "350", "400")
FEES = ("1.50", "1.99", "2.50", "2.99", "3.20", "4.95", "5", "7", "9.90", "12")
EMOJI = ("😩", "🙄", "😕", "🤷", "😡", "🙂")
KEYS = {"a": "s", "e": "r", "i": "o", "o": "p", "n": "m", "t": "r", "s": "d", "r": "t", "l": "k", "c": "v"}

TOPIC = re.compile(r"<topic>")
SLOT = re.compile(r"<([a-z]+)>")
KEEPS_CAPITAL = re.compile(r"(I\b|[A-Z]{2}|Mr\b|Ms\b)")


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


def fragments(name: str) -> list[str]:
    return (HERE / "fragments" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def by_intent(name: str) -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = json.loads(
        (HERE / "fragments" / f"{name}.json").read_text(encoding="utf-8")
    )
    return loaded


class Shared:
    """The fragments that go around the sentences."""

    def __init__(self) -> None:
        self.openers = fragments("openers")
        self.frames = fragments("frames")
        self.details = fragments("details")
        self.closers = fragments("closers")
        self.topics = by_intent("topics")
        self.asks = by_intent("asks")


def facts(dice: Dice) -> dict[str, str]:
    """One customer's facts: a place with its country and money, a way to write amounts, and so on."""
    city, country, currency = dice.pick(PLACES)
    before, after = dice.pick(MONEY)
    drawn = {slot: dice.pick(values) for slot, values in SLOTS.items()}
    drawn |= {"city": city, "country": country, "currency": currency}
    drawn["amount"] = before + dice.pick(AMOUNTS) + after
    drawn["small"] = before + dice.pick(FEES) + after
    return drawn


def lower_first(text: str) -> str:
    return text if KEEPS_CAPITAL.match(text) else text[:1].lower() + text[1:]


def typo(dice: Dice, text: str) -> str:
    """The text with one slip of the keyboard inside a longer word."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = dice.pick(words)
    at = word.start() + 1 + dice.below(len(word.group()) - 2)
    head, letter, tail = text[:at], text[at], text[at + 1 :]
    slip = dice.below(4)
    if slip == 0:
        return head + tail
    if slip == 1:
        return head + letter + letter + tail
    if slip == 2 and tail[:1].isalpha():
        return head + tail[0] + letter + tail[1:]
    return head + KEYS.get(letter, letter) + tail


def join(first: str, second: str) -> str:
    """Two sentences one after the other; a first one without an end gets one."""
    return f"{first} {second}" if first[-1] in ".!?:-" else f"{first}. {second}"


def name_topic(dice: Dice, core: str, intent: str, shared: Shared) -> str:
    """The sentence with its subject named before it, or with a plain request after it, or as it is."""
    how = dice.below(100)
    if how < PERCENT_TOPIC:
        topic = dice.pick(shared.topics[intent])
        first = TOPIC.sub(topic, dice.pick(shared.frames))
        first = first if core[0].islower() else first[0].upper() + first[1:]
        return join(first, lower_first(core) if first[-1] == ":" else core)
    if how < PERCENT_TOPIC + PERCENT_ASK:
        asks = shared.asks[intent]
        return join(core, dice.pick([a for a in asks if not (core[-1] == "?" and a[-1] == "?")]))
    return core


def surround(dice: Dice, message: str, shared: Shared) -> str:
    """The message with a greeting, a side remark and a closing, each of them more often absent."""
    if dice.chance(0.12):
        message = join(message, dice.pick(shared.details))
    if dice.chance(0.3):
        asked = message[-1] == "?"
        message = join(message, dice.pick([c for c in shared.closers if not (asked and c[-1] == "?")]))
    if dice.chance(0.3):
        opener = dice.pick(shared.openers)
        message = f"{opener} {lower_first(message) if opener[-1] == ',' else message}"
    return message


def roughen(dice: Dice, text: str) -> str:
    """What hurried people do to a text."""
    if dice.chance(0.12):
        text = text.lower()
    if dice.chance(0.12):
        text = text.replace("'", "")
    for _ in range(2):
        if dice.chance(0.14):
            text = typo(dice, text)
    if text[-1] == "." and dice.chance(0.25):
        text = text[:-1]
    if text[-1] in "?!" and dice.chance(0.06):
        text += text[-1] * 2
    if dice.chance(0.04):
        text = f"{text} {dice.pick(EMOJI)}"
    return text


def write_message(dice: Dice, core: str, intent: str, shared: Shared) -> str:
    known = facts(dice)
    if core.startswith(ALONE):
        message = core[len(ALONE) :]
    else:
        message = surround(dice, name_topic(dice, core, intent, shared), shared)
    return roughen(dice, SLOT.sub(lambda match: known[match.group(1)], message))


def make() -> dict[str, str]:
    """File name to content."""
    dice = Dice(SEED)
    shared = Shared()
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for intent in INTENTS:
        for number, core in enumerate(dice.shuffled(fragments(f"sentences/{intent}"))):
            split = splits["train" if number < TRAIN_PER_INTENT else "test"]
            split.append((write_message(dice, core, intent, shared), intent))
    files, number = {}, 0
    for name, rows in splits.items():
        lines = []
        for text, intent in dice.shuffled(rows):
            number += 1
            row = {"id": f"m{number:04}", "text": text, "intent": intent}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        files[f"{name}.jsonl"] = "".join(lines)
    return files


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
