"""Different prompts that become the same ids are found; those that say the same are not."""

import numpy as np

from data.alike import find_alike, mark_prompts
from data.schema import Message, Prompt
from data.tokens import EncodedRecord


def mark(*rows):
    """Mark prompts, each (ids, message) or (ids, message, cut)."""
    records = [Prompt((Message("user", row[1]),)) for row in rows]
    encoded = [EncodedRecord(list(row[0]), [], (), cut=len(row) > 2, dropped=0, repeated=0, used=True) for row in rows]
    return mark_prompts(records, encoded)


def test_records_with_equal_ids_that_say_otherwise_are_paired_with_the_first_of_them():
    first = mark(([1, 2], "a"), ([3], "b"), ([1, 2], "a"))
    second = mark(([3], "c"), ([1, 2], "A \n"), ([3], "d"), ([4], "b"))
    assert find_alike([first, second]) == [(1, 3)]
    assert find_alike([first]) == find_alike([]) == []


def test_what_templates_leave_out_on_purpose_is_no_difference():
    same = ["Hello there", " hello  there\n", "HELLO there", "<think>hm\nhm</think>Hello there", "Ｈello there"]
    assert find_alike([mark(*(([7], text) for text in same))]) == []
    assert find_alike([mark(([7], "Hello there"), ([7], "Hello here"))]) == [(0, 1)]


def mark_chats(*chats):
    """Mark prompts of (role, content) that all have the same ids."""
    records = [Prompt(tuple(Message(*message) for message in chat)) for chat in chats]
    return mark_prompts(records, [EncodedRecord([1], [], (), cut=False, dropped=0, repeated=0, used=True)] * len(chats))


def test_roles_count_and_cut_prompts_are_not_compared():
    assert find_alike([mark_chats([("assistant", "a"), ("user", "b")], [("user", "a"), ("user", "b")])]) == [(0, 1)]
    assert find_alike([mark(([1], "a", "cut"), ([1], "b", "cut"), ([1], "c"))]) == []


def test_a_system_message_that_the_template_writes_by_itself_is_no_difference():
    # Qwen 2.5's "You are Qwen ..." stands in some records of a file, and the template adds it to the others.
    asked, other = ("user", "b"), ("user", "c")
    default, another = ("system", "You help."), ("system", "You sing.")
    assert find_alike([mark_chats([asked], [default, asked], [asked])]) == []
    assert find_alike([mark_chats([default, asked], [asked])]) == []
    assert find_alike([mark_chats([default, asked], [another, asked])]) == [(0, 1)]
    assert find_alike([mark_chats([default, asked], [asked], [other], [default, other])]) == [(0, 2)]


def test_of_a_template_that_leaves_all_out_a_few_pairs_are_told():
    pairs = find_alike([mark(*(([number // 2], f"{number}") for number in range(100)))])
    assert pairs == [(2 * number, 2 * number + 1) for number in range(20)]


def test_a_million_records_take_seconds():
    import time

    marks = np.random.default_rng(0).integers(1, 2**63, (1_000_000, 3), dtype=np.uint64)
    started = time.process_time()
    assert find_alike([marks]) == []
    assert time.process_time() - started < 5
