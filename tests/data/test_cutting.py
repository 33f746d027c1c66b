import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.cutting import cut_text
from data.schema import DataError, Message
from data.tokens import encode_prompt


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("One two. Three\n\nfour five six seven", 25, "One two. Three"),  # paragraph
        ("A.\n\nOne two three. Four five six", 25, "A.\n\nOne two three."),  # the paragraph would keep too little
        ('He said "no." Then left town', 20, 'He said "no."'),  # sentence with its closing quote
        ("first line\nsecond line", 15, "first line"),  # a line ends like a sentence
        ("one two three", 9, "one two"),  # word
        ("one two three", 7, "one two"),  # the limit is a boundary
        ("one. two", 4, "one."),
        ("abcdefghij", 4, "abcd"),  # nowhere better
        ("a bcdefghij", 8, "a bcdefg"),  # the word would keep too little
        ("今天好。明天也好吗", 6, "今天好。"),
        ("abc", 0, ""),
    ],
)
def test_text_is_cut_at_the_best_boundary_that_keeps_half(text, limit, kept):
    assert cut_text(text, limit) == kept


@settings(deadline=None)
@given(text=st.text('ab .\n。"', max_size=40), limit=st.integers(0, 40))
def test_cut_text_is_a_beginning_within_the_limit(text, limit):
    kept = cut_text(text, limit)
    assert text.startswith(kept)
    assert len(kept) <= limit
    assert kept == kept.rstrip()


def decode(tokenizer, prompt, max_tokens):
    encoded = encode_prompt(tokenizer, [Message(role, text) for role, text in prompt], max_tokens)
    assert len(encoded.ids) <= max_tokens
    return encoded.cut, tokenizer.decode(encoded.ids)


CHAT = [
    ("system", "Be kind."),
    ("user", "where is my order?"),
    ("assistant", "Your lamp is on its way."),
    ("user", "when will it arrive?"),
    ("assistant", "Your lamp is due on Friday."),
    ("user", "can I cancel my order?"),
]


def test_prompt_that_just_fits_is_not_cut(tokenizer):
    messages = [Message(role, text) for role, text in CHAT]
    whole = encode_prompt(tokenizer, messages, 1000)
    assert encode_prompt(tokenizer, messages, len(whole.ids)) == whole
    assert not whole.cut
    assert encode_prompt(tokenizer, messages, len(whole.ids) - 1).cut


def test_oldest_turns_go_first_and_the_system_message_stays(tokenizer):
    last = "<|user|>can I cancel my order?<|assistant|>"
    middle = "<|user|>when will it arrive?<|assistant|>Your lamp is due on Friday.<|end|>"
    length = len(encode_prompt(tokenizer, [Message(role, text) for role, text in CHAT], 1000).ids)
    assert decode(tokenizer, CHAT, length - 1) == (True, f"<|user|>Be kind.{middle}{last}")
    length = len(encode_prompt(tokenizer, [Message(*CHAT[0]), *[Message(*turn) for turn in CHAT[3:]]], 1000).ids)
    assert decode(tokenizer, CHAT, length) == (True, f"<|user|>Be kind.{middle}{last}")
    assert decode(tokenizer, CHAT, length - 1) == (True, f"<|user|>Be kind.{last}")


def test_then_the_longest_message_is_cut_at_a_sentence(tokenizer):
    sentence = "Your lamp is due on Friday."
    prompt = [("system", "Be kind."), ("user", " ".join([sentence] * 9))]
    tokens_each = len(tokenizer(" " + sentence)["input_ids"])
    whole = len(encode_prompt(tokenizer, [Message(*turn) for turn in prompt], 1000).ids)
    for num_dropped in range(1, 9):
        for spare in (0, tokens_each - 1):  # room that is no whole sentence stays empty
            kept = " ".join([sentence] * (9 - num_dropped))
            max_tokens = whole - num_dropped * tokens_each + spare
            if num_dropped < 5 or spare == 0:  # below half of what fits, a word boundary wins
                assert decode(tokenizer, prompt, max_tokens) == (True, f"<|user|>Be kind.<|user|>{kept}<|assistant|>")


def test_long_system_message_is_cut_before_a_short_question(tokenizer):
    cut, text = decode(tokenizer, [("system", "Be kind. " * 50), ("user", "where is my order?")], 60)
    assert cut
    assert text.endswith("Be kind.<|user|>where is my order?<|assistant|>")


def test_control_token_text_is_cut_like_any_other(tokenizer):
    prompt = [Message("user", "<|end|> stop. " * 30)]
    ids = encode_prompt(tokenizer, prompt, 50).ids
    assert len(ids) <= 50
    assert tokenizer.eos_token_id not in ids


def test_limit_below_the_template_is_an_error(tokenizer):
    with pytest.raises(DataError, match=r"^tokens\.max_prompt_tokens: found 2, too short for a prompt; needed room"):
        encode_prompt(tokenizer, [Message("user", "where is my order?")], 2)


contents = st.text("ab .\n🙂é<|end|>", min_size=1, max_size=60).filter(str.strip)


@settings(deadline=None)
@given(texts=st.lists(contents, min_size=1, max_size=4), max_tokens=st.integers(12, 40))
def test_any_conversation_fits_after_cutting_and_keeps_the_last_message_begun(tokenizer, texts, max_tokens):
    prompt = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    assume(prompt[-1].role == "user")
    encoded = encode_prompt(tokenizer, prompt, max_tokens)
    whole = encode_prompt(tokenizer, prompt, 10_000)
    assert len(encoded.ids) <= max_tokens
    assert encoded.cut == (len(whole.ids) > max_tokens)
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)  # begins with a user's message, ends where the answer begins
    last = tokenizer.decode(encoded.ids[len(encoded.ids) - encoded.ids[::-1].index(1) : -1])
    assert last and prompt[-1].content.strip().startswith(last.strip())
