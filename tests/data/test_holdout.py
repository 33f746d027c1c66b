"""What is held out: whole conversations, usable ones, every source, within a limit."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.holdout import MAX_HELD_OUT, find_places, hold_out
from data.schema import Comparison, Demonstration, Message, Prompt


def user(text):
    return Message("user", text)


def talk(*texts):
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def choose(places, fraction, usable=None, sources=None):
    places = np.array(places, float)
    usable = np.ones(len(places), bool) if usable is None else np.array(usable)
    return hold_out(places, usable, np.array(sources or [""] * len(places)), fraction)


def split(records, fraction, seed):
    """Split records that no limit of length makes useless: (training, held-out)."""
    usable = np.array([not isinstance(record, Comparison) or record.has_pair for record in records])
    held_out = hold_out(find_places([record.prompt for record in records], seed), usable, np.array([""] * len(records)), fraction)
    return tuple([record for record, there in zip(records, held_out, strict=True) if there == side] for side in (False, True))


def prompts_of(texts):
    return [Prompt(talk(text)) for text in texts]


def test_a_place_is_the_hash_of_seed_and_prompt():
    prompt = (Message("system", "Be kind."), user("Hi"))
    text = "5\n(Message(role='system', content='Be kind.'), Message(role='user', content='Hi'))"
    assert find_places([prompt], 5).tolist() == [int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64]


def test_all_turns_of_a_conversation_are_on_one_side():
    rows = [talk(*(f"{turn} of {i}" for turn in range(7))) for i in range(60)]
    records = [Demonstration(row[:turn], row[turn].content) for row in rows for turn in (1, 3, 5)]
    train, held_out = split(records, 0.2, seed=1)
    assert 12 <= len(held_out) <= 66 and len(held_out) % 3 == 0
    assert not {record.prompt[0] for record in train} & {record.prompt[0] for record in held_out}


def test_conversations_with_one_standing_greeting_are_told_apart_by_what_follows():
    records = [Prompt(talk("Hello", "How can I help?", f"question {i // 2}", "Well", f"and {i}")) for i in range(80)]
    train, held_out = split(records, 0.2, seed=1)
    assert len(held_out) >= 4
    assert not {record.prompt[2] for record in train} & {record.prompt[2] for record in held_out}


def test_a_single_conversation_is_not_torn_apart_however_long_and_a_greeting_of_two_turns_is():
    turns = talk(*(f"turn {turn}" for turn in range(21)))
    alone = [turns[:end] for end in range(1, 21, 2)]
    assert len(np.unique(find_places(alone, 1))) == 1
    beside = [*alone, *(talk(f"other {i}") for i in range(4))]
    places = find_places(beside, 1)
    assert len(np.unique(places[:10])) == 1 and len(np.unique(places)) == 5
    greeted = [talk("Hello", "Yes?", "Are you a person?", "No.", f"question {i}") for i in range(40)]
    assert len(np.unique(find_places(greeted, 1))) == 40


@pytest.mark.parametrize("seed", range(8))
def test_ties_are_not_held_out(seed):
    ranks = [(1, 2) if i < 10 else (1, 1) for i in range(20)]
    records = [Comparison((user(f"Say {i}"),), ("a", "b"), ranks[i]) for i in range(20)]
    train, held_out = split(records, 0.05, seed)
    assert held_out and all(record.has_pair for record in held_out)
    assert any(record.has_pair for record in train)


def test_each_prompt_is_on_one_side_and_about_the_fraction_is_held_out():
    records = prompts_of([f"prompt {i % 1000}" for i in range(3000)])
    train, held_out = split(records, 0.1, seed=1)
    assert not {record.prompt for record in train} & {record.prompt for record in held_out}
    assert len(train) + len(held_out) == 3000
    assert 70 <= len(held_out) / 3 <= 130  # 100 expected, three standard deviations are 28
    assert held_out != split(records, 0.1, seed=2)[1]
    assert (train, held_out) == split(records, 0.1, seed=1)


def test_the_side_of_a_prompt_does_not_change_when_records_are_added():
    few, more = prompts_of(map(str, range(200))), prompts_of(map(str, range(400)))
    held_out = split(few, 0.2, seed=0)[1]
    assert [record for record in split(more, 0.2, seed=0)[1] if record in few] == held_out


@settings(deadline=None)
@given(num_prompts=st.integers(2, 6), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_a_prompt_is_left_on_each_side(num_prompts, fraction, seed):
    train, held_out = split(prompts_of(map(str, range(num_prompts))), fraction, seed)
    assert train and held_out


def test_only_usable_records_count():
    assert choose([0.1, 0.2, 0.3, 0.4], 0.25, [False, False, True, True]).tolist() == [False, False, True, False]
    assert choose([0.1, 0.2, 0.3], 0.5, [False, False, True]) is None
    assert choose([0.1, 0.1, 0.3], 0.2, [False, True, True]).tolist() == [False, False, True]  # most records are of the other
    assert choose([0.1, 0.1, 0.3, 0.4], 0.2, [False, True, True, True]).tolist() == [True, True, False, False]


def test_one_conversation_stays_on_each_side():
    assert choose([0.3, 0.2], 0.01).tolist() == [False, True]
    assert choose([0.3, 0.2], 0.99).tolist() == [False, True]


def test_each_source_of_some_size_has_its_share():
    places = np.linspace(0.0005, 0.9995, 1000)
    sources = ["rare" if place > 0.9 else "tiny" if place > 0.898 else "common" for place in places]
    held_out = choose(places, 0.05, sources=sources)
    counts = {name: sum(held_out[i] for i in range(1000) if sources[i] == name) for name in ("common", "rare", "tiny")}
    assert counts == {"common": 50, "rare": 1, "tiny": 0}


def test_hold_outs_are_capped_by_records():
    rng = np.random.default_rng(0)
    places = np.repeat(rng.random(50_000), 4)
    held_out = choose(places, 0.05)
    assert held_out.sum() == MAX_HELD_OUT
    assert places[held_out].max() < places[~held_out].min()
