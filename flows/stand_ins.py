"""What takes the place of a model in flows that `local/nearest` cannot serve, when there is no other.

No model: regular expressions, made for the sample data of these flows. They show that a flow works,
with every part of it in motion, and tell nothing about how well it does. `--lm` puts a model there.
"""

import json
import re
from datetime import datetime
from difflib import get_close_matches

COUNTS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def order_rules(products):
    """For `order_mails.py`: copies words of the mail at first, as a hasty model does; told what is wrong
    with them, looks them up among the products.
    """

    def answer(request):
        mail, corrects = request.tail[0].content, len(request.tail) > 1
        found = re.findall(rf"\b({'|'.join(COUNTS)}|an?|\d+) (?:x )?([a-z ]+?)s?(?= and |, | by |\.)", mail)
        due = next(iter(re.findall(r" by ([^.]+)\.", mail)), None)
        if corrects:
            near = [(next(iter(get_close_matches(name, products, 1, 0.8)), name)) for _, name in found]
            found = [(_number(count), name) for (count, _), name in zip(found, near, strict=True)]
            due = due and _day(due)
        return {"items": [{"quantity": count, "product": name} for count, name in found], "due": due}

    return answer


def _number(word):
    return COUNTS.index(word) + 1 if word in COUNTS else 1 if word in ("a", "an") else int(word)


def _day(written):
    """``2027-03-27`` for ``March 27, 2027`` and ``27 March 2027``; other texts as they are."""
    parts = sorted(re.findall(r"\w+", written), key=lambda part: (part.isalpha(), len(part)))
    try:
        return datetime.strptime(" ".join(parts), "%d %Y %B").date().isoformat()
    except ValueError:
        return written


def agent_rules(request):
    """For `order_agent.py`: the next tool by what the question names and the last tool gave."""
    asked = request.tail[-1].content
    question, _, turns = asked.partition("[[ ## trajectory ## ]]")
    seen = [json.loads(found) for found in re.findall(r"^observation_\d+: (\{.*\})$", turns, re.MULTILINE)]
    known = {name: value for one in seen for name, value in one.items()}
    if "`[[ ## status ## ]]`" in turns:
        status, arrives = known.get("status", "unknown"), known.get("arrives")
        return {"reasoning": "As the tools say.", "status": status, "arrives": arrives}
    number, customer = re.search(r"\b\d{5}\b", question), re.search(r"\S+@\S+\w", question)
    if "thought_0" not in turns and number:
        return _turn("find_order", number=number.group())
    if "thought_0" not in turns and customer:
        return _turn("latest_order", customer=customer.group())
    if known.get("parcel") and "place" not in known:
        return _turn("track_parcel", parcel=known["parcel"])
    return _turn("finish")


def _turn(tool, **args):
    return {"next_thought": f"{tool} is next.", "next_tool_name": tool, "next_tool_args": args}
