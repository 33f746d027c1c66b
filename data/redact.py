"""Personal details in texts -> placeholders: `[email]`, `[phone]`, `[card]`, `[ip]`, `[key]`. Pure functions.

Numbers count where something speaks for it: a card's check digit (Luhn), an address that parses, a phone number's plus, zero, bracket or
groups, or a word before it (`call 4155552671`). A bare number (an order, a year, a price) is left alone. What looks like none of these
(names, streets) is not found at all.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from data.records import tie_identical
from data.schema import Comparison, Demonstration, Message, Prompt, Record, Text
from data.secrets import blot_shapes

RedactKind = Literal["email", "phone", "card", "ip", "key"]
# In the order in which they are looked for: a card's digits would be a phone's too.
_ORDER: tuple[RedactKind, ...] = ("key", "email", "card", "ip", "phone")
COUNTED = {kind: f"{name} blotted out" for kind, name in {
    "key": "keys and tokens", "email": "email addresses", "card": "card numbers", "ip": "IP addresses", "phone": "phone numbers",
}.items()}  # fmt: skip

RULES_VERSION = 2  # of what is found: raised with any change, so that records are read anew

_SPACE, _DASH, _PLUS, _AT = r" \u00a0\u2007\u2009\u202f", r"\u2010-\u2015\u2212\uff0d-", r"+\uff0b", "@\ufe6b\uff20"
_EMAIL = re.compile(
    rf"""(?:(?<![\w.%+-])[\w.%+-][\w.%+'-]{{0,63}}|"[^"\n]{{1,64}}")[{_AT}]"""
    r"[A-Za-z0-9\u0080-\uffff-]{1,63}(?:\.[A-Za-z0-9\u0080-\uffff-]{2,63}){1,8}(?![\w-])"
)
_CARD = re.compile(rf"(?<![\w.,-])\d(?:[.{_SPACE}{_DASH}]?\d){{12,18}}(?![\w-]|[.,]\d)")
# Of a version, a section: four numbers with points between them that are no address.
_IP4 = re.compile(r"(?<![\w.§])(?<!ersion )(?<!elease )(?<!ection )(?<!hapter )(?<!§ )\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{2,45}(?![\w:])")
_PHONE = re.compile(rf"(?<![\w.,/{_DASH}])(?<!\d:)(?:[{_PLUS}]|\()?\d(?:[()./{_SPACE}{_DASH}]{{0,3}}\d){{5,16}}(?![\w]|[.,:]\d)")
_BARE_PHONE = re.compile(
    r"(?i)\b((?:(?:tele)?phone|telefon|tel|mobile|cell|fax|whatsapp|call|dial)\b(?: (?:me|us|number|no|at|on|is)\b){0,3}[ .:#]{1,3})"
    r"\d{7,15}(?!\w|[.,]\d)"
)
_SEPARATOR = rf"[.{_SPACE}{_DASH}]"
# As in North America: area code and exchange begin with 2 to 9.
_PHONE_GROUPS = re.compile(
    rf"(?:1{_SEPARATOR})?(?:\([2-9]\d\d\)|[2-9]\d\d){_SEPARATOR}{{1,2}}[2-9]\d\d{_SEPARATOR}\d{{4}}|[2-9]\d\d{_SEPARATOR}\d{{4}}"
)
_PHONE_BEGINS = re.compile(rf"[{_PLUS}]|00[1-9]")  # with a country's code
_AREA_BEGINS = re.compile(r"\(?0[1-9]|\(\d{2,5}\)[^)]*\d")  # written in groups
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{4} ?[-\u2010-\u2013] ?\d{4}")

AnyRecord = TypeVar("AnyRecord", Demonstration, Comparison, Prompt, Text, Record)


def redact_text(text: str, kinds: Sequence[RedactKind], counts: Counter[str]) -> str:
    """Blot personal details out of a text.

    Args:
        text: Any text.
        kinds: What to look for.
        counts: Is told how many of each kind were found.
    """
    for kind in _ORDER:
        if kind in kinds:
            text, found = _FINDERS[kind](text)
            if found:
                counts[COUNTED[kind]] += found
    return text


def redact_record(record: Record, kinds: Sequence[RedactKind], counts: Counter[str]) -> Record:
    """Blot personal details out of all messages and answers of a record; answers that become the same are a tie then."""
    if isinstance(record, Text):
        return replace(record, text=redact_text(record.text, kinds, counts))
    prompt = tuple(Message(message.role, redact_text(message.content, kinds, counts)) for message in record.prompt)
    if isinstance(record, Demonstration):
        return Demonstration(prompt, redact_text(record.completion, kinds, counts))
    if isinstance(record, Comparison):
        answers = tuple(redact_text(answer, kinds, counts) for answer in record.completions)
        return replace(record, prompt=prompt, completions=answers, ranks=tie_identical(answers, record.ranks))
    return Prompt(prompt)


def is_card(text: str) -> bool:
    """Tell whether digits, with spaces or hyphens, end with the check digit of a card's number (Luhn, ISO/IEC 7812-1)."""
    digits = [int(char) for char in text if char.isdecimal()]
    doubled = [digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and digits[0] in (2, 3, 4, 5, 6) and sum(doubled) % 10 == 0


def is_phone(text: str) -> bool:
    """Tell whether digits with separators are written as a phone number is: `+49 30 901820`, `(030) 90 18 20`, `555-867-5309`."""
    text = "".join(str(int(char)) if char.isdecimal() else char for char in text)  # of whatever script
    digits = sum(char.isdecimal() for char in text)
    if not 7 <= digits <= 15 or _DATE.fullmatch(text):
        return False
    if _PHONE_BEGINS.match(text):
        return True
    is_grouped = any(not char.isdigit() for char in text)
    return is_grouped and bool(_AREA_BEGINS.match(text) or _PHONE_GROUPS.fullmatch(text))


def is_address(text: str) -> bool:
    """Tell whether a text is an IP address of somebody; not this machine's own, nor none."""
    try:
        address = ipaddress.ip_address(text if ":" in text else ".".join(str(int(number)) for number in text.split(".")))
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or text.startswith("255.255."):  # a network's mask
        return False
    groups = [group for group in text.split(":") if group]
    # `a::b` is an address, and more often a name in C++.
    return address.version == 4 or len(groups) > 3 or any(len(group) > 2 and any(map(str.isdigit, group)) for group in groups)


def _blot(pattern: re.Pattern[str], holds: Callable[[str], bool], placeholder: str, hints: str = "") -> Callable[[str], tuple[str, int]]:
    def blot(text: str) -> tuple[str, int]:
        if hints and not any(hint in text for hint in hints):
            return text, 0
        count = 0

        def put(match: re.Match[str]) -> str:
            nonlocal count
            if not holds(match[0].rstrip(".")):
                return match[0]
            count += 1
            return placeholder + "." * (len(match[0]) - len(match[0].rstrip(".")))

        return pattern.sub(put, text), count

    return blot


def _blot_addresses(text: str) -> tuple[str, int]:
    text, first = _blot(_IP6, is_address, "[ip]", ":")(text)  # which may end like one of the others
    text, second = _blot(_IP4, is_address, "[ip]", ".")(text)
    return text, first + second


def _blot_phones(text: str) -> tuple[str, int]:
    text, first = _BARE_PHONE.subn(r"\1[phone]", text)
    text, second = _blot(_PHONE, is_phone, "[phone]")(text)
    return text, first + second


_FINDERS: dict[RedactKind, Callable[[str], tuple[str, int]]] = {
    "key": lambda text: blot_shapes(text, "[key]"),
    "email": _blot(_EMAIL, lambda text: True, "[email]", _AT),
    "card": _blot(_CARD, is_card, "[card]"),
    "ip": _blot_addresses,
    "phone": _blot_phones,
}
