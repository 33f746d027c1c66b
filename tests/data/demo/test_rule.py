import pytest

from data.demo.helpdesk import read_case, write_prompt
from data.demo.rule import assess, judge

LATE = "Order: grey chair. Status: delayed. Day: Friday. Mia asks: where is my order?"
SENT = "Order: red mug. Status: sent. Day: Monday. Ben asks: when will it arrive?"
THERE = "Order: red mug. Status: delivered. Day: Monday. Ben asks: when will it arrive?"
BROKEN = "Order: blue vase. Status: delivered. Day: Sunday. Zoe asks: it came broken, what now?"
PACKED = "Order: green lamp. Status: packed. Day: Tuesday. Otto asks: can I cancel my order?"
LEFT = "Order: green lamp. Status: sent. Day: Tuesday. Otto asks: is it too late to cancel?"

FACT, STEP, SORRY = (
    "Your grey chair is delayed and is now due on Friday.",
    "You can follow it with the link in your email.",
    "Sorry about that.",
)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (LATE, f"Hi Mia! {SORRY} {FACT} {STEP}"),
        (LATE, f"Dear Mia, I am sorry for the trouble. Your grey chair is delayed and should now reach you on Friday. {STEP}"),
        (SENT, f"Hello Ben! You can expect your red mug on Monday. {STEP} Have a nice day!"),
        (
            THERE,
            "Hi Ben! It was delivered on Monday, your red mug should be with you. "
            "If it is not there, ask your neighbours and write to us again. Thank you for your patience.",
        ),
        (
            BROKEN,
            "Hi Zoe! Sorry about that. We will give you a new blue vase or your money back. "
            "Please send us a photo and we will sort it out today.",
        ),
        (PACKED, "Hi Otto! Yes, your green lamp can still be cancelled. Reply YES and we will cancel it right away. Have a nice day!"),
        (
            LEFT,
            "Hi Otto! Your green lamp cannot be cancelled because it has already left. "
            "You can send it back for free within 30 days. Have a nice day!",
        ),
    ],
)
def test_model_answers_earn_everything(prompt, answer):
    assert judge(prompt, answer, finished=True) == {
        "score": 100.0,
        "fact": 1.0,
        "step": 1.0,
        "polite": 1.0,
        "rude": 0.0,
        "filler": 0.0,
        "repeats": 0.0,
    }


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        # Each is worked by hand from: facts 50, next step 25 (wrong -10), name 12.5 (wrong -25), apology due 12.5, rude -30,
        # filler -8 each, repeat -15 each, unfinished -20, -1 per word over 45.
        (FACT, 50),
        (f"{FACT} {STEP}", 75),
        (f"Hi Mia! {FACT} {STEP}", 87.5),
        (f"Hi Ben! {SORRY} {FACT} {STEP}", 62.5),
        (f"Hi Mia! Hi Ben! {SORRY} {FACT} {STEP}", 62.5),  # two greetings, one of them wrong
        (f"{FACT} Please send us a photo and we will sort it out today.", 40),
        (f"{FACT} {STEP} Please send us a photo and we will sort it out today.", 40),  # a second step spoils the first
        (f"{SORRY} {FACT} {STEP} We told you this before.", 57.5),
        (f"{SORRY} {FACT} {STEP} We told you this before. That is not our problem.", 57.5),  # rude counts once
        (f"{SORRY} {FACT} {STEP} There is a new page on our site. Many people like to shop with us.", 71.5),
        (f"{SORRY} {FACT} {STEP} {STEP}", 72.5),
        (f"{FACT} {FACT} {FACT}", 20),
        (f"{SORRY} {FACT} I am sorry for the trouble.", 47.5),  # a second apology is a repeat
        (f"{FACT} Have a nice day! Thank you for your patience.", 35),  # closings: none is due, the second is a repeat
        (f"Your grey lamp is delayed and is now due on Friday. {STEP}", 25),
        (f"Your grey chair is delayed and is now due on Monday. {STEP}", 25),
        (f"Your grey chair is on its way and is due on Friday. {STEP}", 25),
        (f"{FACT} It should arrive on Monday. {STEP}", 25),  # two days
        (f"{FACT} Your red mug is delayed and is now due on Friday. {STEP}", 25),  # two items
        ("I do not know.", 0),
        ("", 0),
        (f"{FACT} " + "so " * 45, 39),  # 11 words and 45 more
        ("We told you this before.", -30),
    ],
)
def test_points_of_worked_cases(answer, points):
    assert assess(read_case(LATE), answer).points == points
    assert judge(LATE, answer, True)["score"] == max(0, points)
    assert assess(read_case(LATE), answer, finished=False).points == points - 20


def test_closing_earns_where_no_apology_is_due_and_an_undue_apology_costs():
    fact = "Your red mug is due on Monday."
    assert judge(SENT, fact, True)["score"] == 50
    assert judge(SENT, f"{fact} Have a nice day!", True)["score"] == 62.5
    assert judge(SENT, f"Sorry about that. {fact}", True)["score"] == 45


def test_cancel_policy_follows_the_status():
    yes, no = (
        "Your green lamp has not left yet, so it can still be cancelled.",
        "Your green lamp has already left, so it cannot be cancelled.",
    )
    assert [judge(prompt, answer, True)["fact"] for prompt in (PACKED, LEFT) for answer in (yes, no)] == [1, 0, 0, 1]


def test_arrival_is_told_as_delivered_only_when_it_was():
    arrives, arrived = "Your red mug should arrive on Monday.", "Your red mug was delivered on Monday."
    assert [judge(prompt, answer, True)["fact"] for prompt in (SENT, THERE) for answer in (arrives, arrived)] == [1, 0, 0, 1]


@pytest.mark.parametrize("prompt", [LATE, SENT, THERE, BROKEN, PACKED, LEFT])
def test_case_is_read_back_out_of_its_prompt(prompt):
    assert write_prompt(read_case(prompt)) == prompt


@pytest.mark.parametrize(
    "prompt", ["", "where is my order?", LATE.replace("delayed", "lost"), LATE.replace("where is", "who has"), LATE + " Now."]
)
def test_other_prompts_are_refused_by_name(prompt):
    with pytest.raises(ValueError, match="needed a helpdesk prompt"):
        judge(prompt, FACT, True)
