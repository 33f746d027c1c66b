import itertools

import pytest

from data.schema import Comparison, Demonstration, Message, Prompt


def message(name, role, text, *replies, **fields):
    return {"message_id": name, "user_id": "u", "role": role, "text": text, "lang": "en", **fields, "replies": list(replies)}


# Why? -> [second best -> Really?, best -> And? -> [only], deleted]
TREE = message(
    "r",
    "prompter",
    "Why?",
    message("a1", "assistant", "So.", message("q1", "prompter", "Really?", message("a4", "assistant", "Yes.")), rank=1),
    message("a2", "assistant", "Because.", message("q2", "prompter", "And?", message("a5", "assistant", "That is all.", rank=0)), rank=0),
    message("a3", "assistant", "Spam.", rank=2, deleted=True),
)
ASKED, BECAUSE, AND = Message("user", "Why?"), Message("assistant", "Because."), Message("user", "And?")


def flat(node, parent=None):
    """The rows of a tree, as the hub's dataset has them."""
    rest = {name: node.get(name) for name in ("message_id", "role", "text", "rank", "deleted")}
    return [{**rest, "parent_id": parent}, *itertools.chain(*(flat(reply, node["message_id"]) for reply in node["replies"]))]


@pytest.fixture(params=["tree", "messages", "messages in another order"])
def rows(request):
    if request.param == "tree":
        return [{"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": TREE}]
    return flat(TREE) if request.param == "messages" else [*flat(TREE)[3:], *flat(TREE)[:3]]


def test_demonstrations_and_prompts_follow_the_best_reply_and_comparisons_are_all_ranked_replies(read, rows):
    assert read("demonstrations", *rows) == [
        Demonstration((ASKED,), "Because."),
        Demonstration((ASKED, BECAUSE, AND), "That is all."),
    ]
    assert read("prompts", *rows) == [Prompt((ASKED,)), Prompt((ASKED, BECAUSE, AND))]
    (comparison,) = read("comparisons", *rows)
    assert dict(zip(comparison.completions, comparison.ranks, strict=True)) == {"So.": 2, "Because.": 1}
    assert comparison.prompt == (ASKED,)


def test_what_is_left_out_of_a_tree_is_told(told, rows):
    line = told("demonstrations", *rows)
    assert "; 1 messages that were deleted or rejected by reviewers, and what follows them, left out" in line
    assert "; 1 replies that are not the best of their siblings left out" in line


def test_a_thread_is_a_conversation(read):
    thread = [message("r", "prompter", "Why?"), message("a", "assistant", "Because.")]
    assert read("demonstrations", {"thread_id": "a", "thread": thread}) == [Demonstration((ASKED,), "Because.")]


@pytest.mark.parametrize(
    "replies", [["Because.", "So."], [{"text": "Because.", "rank": 0}, {"text": "So.", "rank": 1}]], ids=["in order", "with ranks"]
)
def test_ready_made_replies_are_ranked(read, replies):
    row = {"prompt": "Why?", "replies": replies}
    assert read("comparisons", row) == [Comparison((ASKED,), ("Because.", "So."), (1, 2))]
    assert read("demonstrations", row) == [Demonstration((ASKED,), "Because.")]
    assert read("prompts", row) == [Prompt((ASKED,))]


def test_bad_messages_are_told_where_they_stand(refused):
    lost = {"message_id": "x", "parent_id": "nowhere", "role": "assistant", "text": "Lost."}
    assert refused(
        "demonstrations", *flat(TREE), lost, {**lost, "message_id": "y", "role": "bot"}, {**lost, "message_id": "r", "parent_id": None}
    ) == [
        "records.jsonl:10: role: found the text 'bot'; needed prompter or assistant; rename it",
        "records.jsonl:11: message_id: found again, after records.jsonl:1; needed one row per message; remove one",
        "records.jsonl:9: parent_id: found the text 'nowhere', which no row has; needed the message before it; add or remove it",
    ]
    tree = {"prompt": message("r", "prompter", "Why?", message("a", "assistant", " "))}
    assert refused("demonstrations", tree) == [
        "records.jsonl:1: prompt.replies[0].text: found blanks only; needed text; fill it or remove the line"
    ]


@pytest.mark.parametrize(("parent", "told"), [({}, "an object"), (["a"], "a list"), (5, "5 (a number)"), (True, "")])
def test_a_parent_that_is_no_name_is_told(refused, parent, told):
    (line,) = refused("demonstrations", *flat(TREE), {"message_id": "x", "parent_id": parent, "role": "assistant", "text": "Lost."})
    assert line.startswith("records.jsonl:9: parent_id: found ") and "which no row has" in line and told in line, line


def test_messages_that_follow_each_other_in_a_circle_are_told_each_on_its_line(refused):
    rows = [{"message_id": name, "parent_id": parent, "role": "prompter", "text": "Round."} for name, parent in ("ab", "bc", "cb", "dd")]
    assert refused("prompts", *flat(TREE), *rows) == [
        f"records.jsonl:{line}: parent_id: found the text '{parent}', which comes after this message too; needed the message before it; "
        "correct it"
        for line, parent in ((10, "c"), (11, "b"), (12, "d"))
    ]
