"""What is blotted out of texts, and what looks like it and stays."""

from collections import Counter
from typing import get_args

import pytest

from data.load import load_records
from data.redact import RedactKind, is_card, redact_record, redact_text
from data.schema import Comparison, Message, Prompt, Text
from data.treatment import make_treatment

ALL = get_args(RedactKind)


def redacted(text, kinds=ALL):
    counts = Counter()
    return redact_text(text, kinds, counts), counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to anna.b+shop@mail.example.co.uk.", "Write to [email]."),
        ("<Jürgen@müller.de>, x_1@sub.example.com", "<[email]>, [email]"),
        ("call +49 30 901820 or 0049-30-901820", "call [phone] or [phone]"),
        ("(030) 90 18 20; 030/901820; 555-867-5309; (555) 867-5309", "[phone]; [phone]; [phone]; [phone]"),
        ("card 4111 1111 1111 1111, or 5500-0055-5555-5559.", "card [card], or [card]."),
        ("378282246310005 and 6011000990139424", "[card] and [card]"),
        ("from 192.168.1.17 and 2001:db8::ff00:42:8329.", "from [ip] and [ip]."),
        ("ghp_" + "a1B2" * 9 + " AKIA" + "ABCD1234EFGH5678", "[key] [key]"),
        ("https://me:hunter22@example.com/x", "https://[key]@example.com/x"),
        ("1-800-555-0199, +1\u00a0415\u00a0555\u00a02671, +1\u2011415\u2011555\u20112671", "[phone], [phone], [phone]"),
        ("tel:+14155552671 call me at 4155552671, 06 12 34 56 78", "tel:[phone] call me at [phone], [phone]"),
        (
            "\uff0b\uff18\uff11 \uff19\uff10 \uff11\uff12\uff13\uff14 \uff15\uff16\uff17\uff18; "
            "\u0660\u0665\u0660 \u0661\u0662\u0663 \u0664\u0665\u0666\u0667",
            "[phone]; [phone]",
        ),
        ("4111\u00a01111\u00a01111\u00a01111 4111.1111.1111.1111 4111\u20111111\u20111111\u20111111", "[card] [card] [card]"),
        ("me\uff20example.org \"a b\"@example.org 'o'brien@example.ie'", "[email] [email] '[email]'"),
        ("192.168.001.005, fe80::1%eth0, ::ffff:192.0.2.128", "[ip], [ip]%eth0, [ip]"),
    ],
)
def test_what_is_personal_is_blotted_out(text, expected):
    assert redacted(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111111111111112 of 2026-11-26, 26.11.2026, 1990-2000, 11/26/2026.",  # no check digit; dates
        "Version 1.2.3, 10.5, 127.0.0.1, ::1, 0.0.0.0, 999.1.1.1, 12:30:45",
        "Order 1234567890, price 1,234,567.89, room 12-34, 3.14159265358979",
        "a @ b, @handle, user@localhost, 5 @ 3.50",
        "0.5 0.25 0.125, x = 0.0123456789, 0 1 2 3 4 5 6 7 8, 000 111 222, 00 01 10 11, 0-1-2-3-4-5-6, 100-200-3000, (1234567)",
        "version 1.2.3.4, section 1.2.3.4, § 1.2.3.4, mask 255.255.255.0, at 12:34:56:78, in 2024 4155552671",
        "std::vector<int>, a::b, C:\\x, 1:2",
        "",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert redacted(text) == (text, Counter())


def test_only_what_was_asked_for_is_looked_for_and_counted():
    text = "a@example.com b@example.com 4111 1111 1111 1111"
    assert redacted(text, ["email"]) == ("[email] [email] 4111 1111 1111 1111", Counter({"email addresses blotted out": 2}))
    assert redacted(text, ["card"])[1] == Counter({"card numbers blotted out": 1})
    assert redacted(text, ["phone"])[0] == text  # a card is no phone number


def test_the_check_digit_is_luhns():
    """Worked by hand for 4539 1488 0343 6467, and by a slow loop for all last digits."""
    assert is_card("4539 1488 0343 6467") and not is_card("4539 1488 0343 6476")
    for last in range(10):
        digits = [int(char) for char in f"411111111111111{last}"]
        total = 0
        for place, digit in enumerate(digits[::-1]):
            total += sum(map(int, str(digit * 2))) if place % 2 else digit
        assert is_card("".join(map(str, digits))) == (total % 10 == 0)
    assert not is_card("0000 0000 0000 0000") and not is_card("42")


def test_every_message_and_answer_of_a_record_is_searched_and_answers_that_become_equal_are_a_tie():
    counts = Counter()
    prompt = (Message("system", "s@example.com"), Message("user", "u@example.com"))
    comparison = Comparison(prompt, ("mail a@example.com", "mail b@example.com", "no"), (1, 2, 3), "forum")
    found = redact_record(comparison, ["email"], counts)
    assert [message.content for message in found.prompt] == ["[email]", "[email]"]
    assert found.completions == ("mail [email]", "mail [email]", "no") and found.ranks == (1, 1, 3) and found.source == "forum"
    assert redact_record(Text("a@example.com"), ["email"], counts) == Text("[email]")
    assert redact_record(Prompt(prompt), ["card"], counts) == Prompt(prompt) and sum(counts.values()) == 5


def test_the_source_says_how_much_was_blotted_out(write_lines):
    source = write_lines({"prompt": "I am a@example.com", "completion": "Call 555-867-5309 or b@example.com."})
    reports = []
    (record,) = load_records(source, "demonstrations", 0, reports, make_treatment(("email", "phone"), None))
    assert record.completion == "Call [phone] or [email]."
    assert "2 email addresses blotted out" in reports[0].line() and "1 phone numbers blotted out" in reports[0].line()


def test_long_texts_of_odd_characters_take_no_time():
    for text in ("a" * 200_000, "1 " * 100_000, "1." * 100_000, ":" * 200_000, "a@" * 100_000, "@" + "a." * 100_000, "(1" * 100_000):
        redacted(text)
