"""The world of the demo: orders and questions, how a prompt is written, and the sentences that answers are made of.

`Order: grey chair. Status: delayed. Day: Friday. Mia asks: where is my order?`
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Literal, cast, get_args

Kind = Literal["where", "when", "broken", "cancel"]
Status = Literal["packed", "sent", "delayed", "delivered"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATUSES: tuple[Status, ...] = get_args(Status)
KIND_WEIGHTS = (4, 3, 2, 2)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Ada Ben Cleo Dan Elsa Finn Gina Hugo Iris Jack Kira Leo Mia Nora Omar Pia Quinn Rosa Sam Tess Uma Vera Will Yara Zoe
    Amir Bea Carl Dina Evan Fay Glen Hana Ivan June Karl Lena Mark Nina Otto
""")
COLOURS = _words("red blue green white black yellow silver purple orange grey")
ITEMS = _words("""
    kettle lamp chair teapot blanket clock basket pillow mirror bottle backpack umbrella vase scarf bowl candle tray jacket radio
    desk toaster mug towel shelf rug bench helmet violin wallet tent
""")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "where": (
        "where is my order?",
        "where is my parcel now?",
        "can you tell me where my order is?",
        "what is happening with my order?",
        "I cannot find my parcel, where is it?",
    ),
    "when": (
        "when will it arrive?",
        "what day should I expect it?",
        "how long do I have to wait?",
        "which day does my parcel come?",
        "when do I get my order?",
    ),
    "broken": (
        "it came broken, what now?",
        "my order is damaged, can you help?",
        "it does not work, what can I do?",
        "there is a crack in it, can I get a new one?",
    ),
    "cancel": (
        "can I cancel my order?",
        "I changed my mind, can I cancel it?",
        "please cancel my order.",
        "is it too late to cancel?",
    ),
}

GREETINGS = ("Hi {name}!", "Hello {name}!", "Dear {name},")
APOLOGIES = ("I am sorry for the trouble.", "Sorry about that.")
CLOSINGS = ("Have a nice day!", "Thank you for your patience.", "Thank you for shopping with us!")
RUDE = ("That is not our problem.", "Read your email first.", "Please stop asking us.", "We told you this before.")
FILLERS = (
    "Our shop opened many years ago and sells many things.",
    "We have a lot of colours to choose from.",
    "Many people like to shop with us.",
    "There is a new page on our site.",
)
EVASIONS = ("I do not know.", "I am not sure about that.", "It is hard to say.")

# The words by which each next step is known in an answer.
ASK_NEIGHBOURS, FOLLOW_LINK, SEND_PHOTO = "ask your neighbours", "follow it with the link", "send us a photo"
REPLY_YES, SEND_BACK = "Reply YES", "send it back for free"
STEP_MARKS = (ASK_NEIGHBOURS, FOLLOW_LINK, SEND_PHOTO, REPLY_YES, SEND_BACK)
STEP_SENTENCES = {
    ASK_NEIGHBOURS: "If it is not there, ask your neighbours and write to us again.",
    FOLLOW_LINK: "You can follow it with the link in your email.",
    SEND_PHOTO: "Please send us a photo and we will sort it out today.",
    REPLY_YES: "Reply YES and we will cancel it right away.",
    SEND_BACK: "You can send it back for free within 30 days.",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One customer's order and question."""

    kind: Kind
    status: Status
    name: str
    item: str
    day: str
    question: str

    @property
    def needs_apology(self) -> bool:
        """Whether something went wrong for the customer."""
        return self.kind == "broken" or self.status == "delayed"


def draw_case(rng: Random) -> Case:
    """Draw a random case; an order that came broken has been delivered."""
    kind: Kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
    status: Status = "delivered" if kind == "broken" else rng.choice(STATUSES)
    name, item, day = rng.choice(NAMES), draw_item(rng), rng.choice(DAYS)
    return Case(kind, status, name, item, day, rng.choice(QUESTIONS[kind]))


def draw_item(rng: Random) -> str:
    """Draw a colour and a thing."""
    return f"{rng.choice(COLOURS)} {rng.choice(ITEMS)}"


def write_prompt(case: Case) -> str:
    """Write a case as the prompt that the policy sees."""
    return f"Order: {case.item}. Status: {case.status}. Day: {case.day}. {case.name} asks: {case.question}"


_PROMPT = re.compile(r"Order: (?P<item>[^.]+)\. Status: (?P<status>\w+)\. Day: (?P<day>\w+)\. (?P<name>\w+) asks: (?P<question>.+)")
_KIND_OF: dict[str, Kind] = {question: kind for kind, questions in QUESTIONS.items() for question in questions}


def read_case(prompt: str) -> Case:
    """Read the case back out of a prompt.

    Raises:
        ValueError: The text is not a helpdesk prompt.
    """
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None or match["status"] not in STATUSES or match["question"] not in _KIND_OF:
        raise ValueError(
            f"found {prompt[:80]!r}; needed a helpdesk prompt as `write_prompt` writes it; judge other tasks with another judge"
        )
    status = cast(Status, match["status"])
    return Case(_KIND_OF[match["question"]], status, match["name"], match["item"], match["day"], match["question"])


def step_mark(kind: Kind, status: Status) -> str:
    """The next step that helps a customer with this question and status."""
    if kind == "broken":
        return SEND_PHOTO
    if kind == "cancel":
        return REPLY_YES if status == "packed" else SEND_BACK
    return ASK_NEIGHBOURS if status == "delivered" else FOLLOW_LINK


def write_step(kind: Kind, status: Status) -> str:
    """Write the next step as a sentence."""
    return STEP_SENTENCES[step_mark(kind, status)]


def write_fact(rng: Random, kind: Kind, status: Status, item: str, day: str) -> str:
    """Write the sentence that answers a question of this kind about this order, in one of its wordings."""
    if kind == "where":
        return rng.choice(_whereabouts(status, item, day))
    if kind == "when":
        if status == "delivered":
            return rng.choice((f"Your {item} was delivered on {day}.", f"It was delivered on {day}, your {item} should be with you."))
        arrivals = (f"Your {item} should arrive on {day}.", f"You can expect your {item} on {day}.", f"Your {item} is due on {day}.")
        return rng.choice(arrivals)
    if kind == "broken":
        return rng.choice((f"You can have a new {item} or your money back.", f"We will give you a new {item} or your money back."))
    if status == "packed":
        return rng.choice((f"Yes, your {item} can still be cancelled.", f"Your {item} has not left yet, so it can still be cancelled."))
    return rng.choice(
        (f"Your {item} has already left, so it cannot be cancelled.", f"Your {item} cannot be cancelled because it has already left.")
    )


def _whereabouts(status: Status, item: str, day: str) -> tuple[str, str]:
    if status == "packed":
        return f"Your {item} is packed and is due on {day}.", f"Your {item} is packed in our shop and should reach you on {day}."
    if status == "sent":
        return f"Your {item} is on its way and is due on {day}.", f"Your {item} is on its way and should reach you on {day}."
    if status == "delayed":
        return f"Your {item} is delayed and is now due on {day}.", f"Your {item} is delayed and should now reach you on {day}."
    return f"Your {item} was delivered on {day}.", f"Our notes say that your {item} was delivered on {day}."
