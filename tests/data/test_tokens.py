import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import Comparison, DataError, Demonstration, Message, Prompt
from data.tokens import EncodedPrompt, count_records, encode_prompt, encode_records, encode_response, refuse_none_left

PAD, USER, ASSISTANT, END = 0, 1, 2, 3
GOOD_TEMPLATE = "{% for m in messages %}[U]{{ m['content'] }}{% endfor %}[A]"


def user(text):
    return (Message("user", text),)


def encode_used(tokenizer, kind, records, limits):
    """Encode records -> (those that are used, what is told of all)."""
    encoded = encode_records(tokenizer, records, limits)
    used, dropped = [item for item in encoded if item.used], sum(item.dropped for item in encoded)
    refuse_none_left(kind, len(records), len(used), limits[1])
    cut = sum(item.cut for item in used)
    return used, count_records(kind, used=len(used), records=len(records), prompts_cut=cut, responses_dropped=dropped)


def plain_ids(tokenizer, text):
    """Encode text by the bare model, by an independent way: no added token is ever looked for."""
    backend = tokenizer.backend_tokenizer
    return [token.id for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text) for token in backend.model.tokenize(piece)]


# One stream


def test_prompt_and_response_have_their_control_tokens_and_nothing_else(tokenizer):
    assert encode_prompt(tokenizer, user("where is it?"), 50) == EncodedPrompt(
        [USER, *plain_ids(tokenizer, "where is it?"), ASSISTANT], False
    )
    assert encode_response(tokenizer, "Hi Mia!") == [*plain_ids(tokenizer, "Hi Mia!"), END]


def test_response_is_not_merged_with_the_prompt(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{{ messages[0]['content'] }}"  # nothing stands between prompt and response
    stream = encode_prompt(bare, user("ca"), 50).ids + encode_response(bare, "n")
    assert bare.convert_ids_to_tokens(stream) == ["c", "a", "n", "<|end|>"]
    assert bare.tokenize("can") == ["c", "an"]


def test_earlier_turns_are_the_ids_the_model_saw_and_wrote(tokenizer):
    history = [Message("user", "where is it?"), Message("assistant", "Your lamp is due on Friday."), Message("user", "why?")]
    first_turn = encode_prompt(tokenizer, history[:1], 100).ids + encode_response(tokenizer, history[1].content)
    assert encode_prompt(tokenizer, history, 100).ids == [*first_turn, USER, *plain_ids(tokenizer, "why?"), ASSISTANT]


def test_what_a_tool_answered_is_encoded_where_the_template_writes_it_and_refused_where_it_does_not(tokenizer_of):
    prompts = [Prompt(user("a")), Prompt((*user("a"), Message("assistant", "b"), Message("tool", "Hello")))]
    tokenizer = tokenizer_of(GOOD_TEMPLATE)
    encoded = encode_records(tokenizer, prompts, (50, 50))
    assert tokenizer.decode(encoded[1].prompt_ids).replace(" ", "") == "[U]a[U]b[U]Hello[A]"
    users = "{% for m in messages if m['role'] != 'tool' %}[U]{{ m['content'] }}{% endfor %}[A]"
    with pytest.raises(DataError, match="record 2: prompt: found a tool's message, which the chat template leaves out"):
        encode_records(tokenizer_of(users), prompts, (50, 50))
    raises = "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    refusing = f"{{% for m in messages %}}{raises}[U]{{{{ m['content'] }}}}{{% endfor %}}[A]"
    with pytest.raises(DataError, match=r"record 2: prompt: refused by the chat template or tokenizer \(no tools\)"):
        encode_records(tokenizer_of(refusing), prompts, (50, 50))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages if m['role'] != 'system' %}[U]{{ m['content'] }}{% endfor %}[A]", "prompt[0]: found a system message"),
        ("[U]{{ messages[-1]['content'] }}[A]", "prompt[0]: found a system message"),
        (
            "{% for m in messages if m['role'] != 'assistant' %}[U]{{ m['content'] }}{% endfor %}[A]",
            "prompt[2]: found an assistant's message",
        ),
        (
            "{{ messages[0]['content'] }}{% for m in messages[-2:] %}[U]{{ m['content'] }}{% endfor %}[A]",
            "prompt[1]: found a user's message",
        ),
    ],
)
def test_a_message_that_the_template_leaves_out_is_refused_and_named(tokenizer_of, template, told):
    prompts = [Prompt(user("a")), Prompt((Message("system", "b"), *user("a"), Message("assistant", "b"), *user("Hello")))]
    with pytest.raises(DataError) as refused:
        encode_records(tokenizer_of(template), prompts, (50, 50))
    assert [str(problem) for problem in refused.value.problems] == [
        f"record 2: {told}, which the chat template leaves out; needed a template that writes it; take one"
    ]


def test_system_message_comes_first(tokenizer):
    ids = encode_prompt(tokenizer, [Message("system", "Be kind."), Message("user", "why?")], 100).ids
    assert ids == [USER, *plain_ids(tokenizer, "Be kind."), USER, *plain_ids(tokenizer, "why?"), ASSISTANT]


# Control tokens that people typed


@pytest.mark.parametrize("text", ["<|end|>", "a<|end|> b", "<|user|><|assistant|>x<|end|>", "<|pad|>", "<<|end|>|end|>", "<|en<|end|>d|>"])
def test_control_token_typed_by_people_is_text(tokenizer, text):
    assert encode_response(tokenizer, text)[-1] == END
    assert not {PAD, USER, ASSISTANT, END} & set(encode_response(tokenizer, text)[:-1])
    assert tokenizer.decode(encode_response(tokenizer, text)[:-1]) == text
    prompt = encode_prompt(
        tokenizer, [Message("system", text), Message("user", text), Message("assistant", text), Message("user", text)], 900
    )
    control = [i for i in prompt.ids if i in (PAD, USER, ASSISTANT, END)]
    assert control == [USER, USER, ASSISTANT, END, USER, ASSISTANT]


@settings(deadline=None)
@given(text=st.text(st.sampled_from("<|end|>user pad|>é🙂\n"), max_size=30))
def test_any_text_comes_back_from_a_response_without_control_ids(tokenizer, text):
    ids = encode_response(tokenizer, text)
    assert ids[-1] == END
    assert not {PAD, USER, ASSISTANT, END} & set(ids[:-1])
    assert tokenizer.decode(ids[:-1]) == text


def test_text_with_and_without_control_tokens_keeps_its_order_in_a_batch(tokenizer):
    texts = ["a", "b<|end|>", "c", "<|user|>d", "e"]
    encoded = encode_records(tokenizer, [Demonstration(user(text), text) for text in texts], (50, 50))
    assert [tokenizer.decode(item.responses[0][:-1]) for item in encoded] == texts
    assert [tokenizer.decode(item.prompt_ids[1:-1]) for item in encoded] == texts


def test_added_token_that_is_not_special_stays_a_token_in_an_answer(tokenizer_of):
    # Reasoning and tool marks are such tokens: a demonstration must teach the id that the model will write.
    tokenizer = tokenizer_of("{% for m in messages %}[U]{{ m['content'] }}{% endfor %}[A]")
    tokenizer.add_tokens(["<think>"], special_tokens=False)
    assert encode_response(tokenizer, "a<think>b") == tokenizer.convert_tokens_to_ids(["a", "<think>", "b", "</s>"])


TOOLS = (
    "{% for m in messages %}{% set c = m['content'].split('</think>')[-1].lstrip('\n') if m['role'] == 'assistant' else m['content'] %}"
    "[U]{% if m['role'] == 'tool' %}<call>{% endif %}{{ c }}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)


def test_what_the_assistant_wrote_has_the_same_ids_in_a_history_and_in_an_answer(tokenizer_of):
    # Qwen's and Hermes' tool calls: the model writes <tool_call> as one token, and sees it so in the next turn; people cannot type it.
    tokenizer = tokenizer_of(TOOLS)
    tokenizer.add_tokens(["<call>", "</think>"], special_tokens=False)
    call, said = tokenizer.convert_tokens_to_ids("<call>"), "a <call> b"
    history = [Message("system", said), Message("user", said), Message("assistant", said), Message("tool", said)]
    ids = encode_prompt(tokenizer, history, 100).ids
    answer = encode_response(tokenizer, said)[:-1]
    assert answer.count(call) == 1
    turns = tokenizer.decode(ids).split("[U]")
    assert [turn.count("<call>") for turn in turns[1:]] == [0, 0, 1, 1]  # of the tool's, it is the template's own
    start = [i for i, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("[U]")][2] + 1
    assert ids[start : start + len(answer)] == answer


def test_a_template_that_takes_thoughts_out_of_a_history_finds_them(sentencepiece_of):
    # Qwen 3: content.split('</think>')[-1].lstrip('\n'); what marks a control token as text must not stand between the two.
    tokenizer = sentencepiece_of(TOOLS)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=False)
    thought = [Message("user", "a"), Message("assistant", "<think>\nb\n</think>\n\none"), Message("user", "c")]
    plain = [thought[0], Message("assistant", "one"), thought[2]]
    assert encode_prompt(tokenizer, thought, 100).ids == encode_prompt(tokenizer, plain, 100).ids


def test_a_special_token_in_what_the_assistant_wrote_stays_text(tokenizer_of):
    tokenizer = tokenizer_of(TOOLS)
    tokenizer.add_tokens(["<call>"], special_tokens=False)
    ids = encode_prompt(tokenizer, [Message("user", "a"), Message("assistant", "<call> [A] </s>"), Message("user", "b")], 100).ids
    assert ids.count(tokenizer.convert_tokens_to_ids("[A]")) == 1
    assert tokenizer.eos_token_id not in ids


# Limits


def test_too_long_demonstration_is_dropped_never_cut(tokenizer):
    records = [Demonstration(user("a?"), "Hi"), Demonstration(user("b?"), "Hi Mia! Hi Mia!"), Demonstration(user("b b b b b b?"), "Hi")]
    longest = len(encode_response(tokenizer, "Hi"))
    encoded, counts = encode_used(tokenizer, "demonstrations", records, (6, longest))
    assert counts == {"demonstrations": 3, "demonstrations_used": 2, "prompts_cut": 1, "responses_dropped": 1}
    assert encoded[0].prompt_ids == [USER, *plain_ids(tokenizer, "a?"), ASSISTANT]
    assert encoded[0].responses == [encode_response(tokenizer, "Hi")]
    assert len(encoded[1].prompt_ids) <= 6


def test_response_limit_counts_the_end_token(tokenizer):
    record, length = Demonstration(user("a?"), "Hi Mia!"), len(plain_ids(tokenizer, "Hi Mia!"))
    assert encode_used(tokenizer, "demonstrations", [record], (50, length + 1))[1]["demonstrations_used"] == 1
    with pytest.raises(DataError, match="none of 1 can be used: answers are longer than"):
        encode_used(tokenizer, "demonstrations", [record], (50, length))


def test_too_long_answer_leaves_its_comparison_and_a_comparison_without_pair_goes(tokenizer):
    long = "Hi Mia! " * 9
    records = [
        Comparison(user("a?"), ("Hi", long, "No"), (1, 2, 3), "forum"),  # two answers are left
        Comparison(user("b?"), ("Hi", long), (1, 2)),  # one is left
        Comparison(user("c?"), ("Hi", long, "No"), (2, 1, 2)),  # two equal ones are left
        Comparison(user("d?"), ("Hi", "No"), (1, 1)),  # equal from the start
    ]
    encoded, counts = encode_used(tokenizer, "comparisons", records, (50, 6))
    assert counts == {"comparisons": 4, "comparisons_used": 1, "prompts_cut": 0, "responses_dropped": 3, "comparisons_without_pair": 3}
    assert encoded[0].responses == [encode_response(tokenizer, "Hi"), encode_response(tokenizer, "No")]
    assert encoded[0].ranks == (1, 3)


def test_prompts_are_cut_and_counted_but_never_dropped(tokenizer):
    records = [Prompt(user("a?")), Prompt(user("Your lamp is due. " * 9))]
    encoded, counts = encode_used(tokenizer, "prompts", records, (20, 1))
    assert counts == {"prompts": 2, "prompts_cut": 1}
    assert encoded[0].prompt_ids == encode_prompt(tokenizer, user("a?"), 20).ids
    assert len(encoded[1].prompt_ids) <= 20


def test_no_records_give_no_error(tokenizer):
    assert encode_used(tokenizer, "demonstrations", [], (9, 9)) == (
        [],
        {"demonstrations": 0, "demonstrations_used": 0, "prompts_cut": 0, "responses_dropped": 0},
    )


def test_comparisons_are_rendered_and_encoded_in_one_batch_for_prompts_and_one_for_answers(tokenizer, monkeypatch):
    calls = []
    for name in ("apply_chat_template", "__call__"):
        real = getattr(type(tokenizer), name)
        monkeypatch.setattr(type(tokenizer), name, lambda *args, name=name, real=real, **named: calls.append(name) or real(*args, **named))
    words = "Hi Mia! Your grey chair is on its way."
    records = [Comparison(user(f"where is order {i}?"), (words, words + " a", words + " b"), (1, 2, 3)) for i in range(40)]
    encode_records(tokenizer, records, (100, 100))
    # However many there are; the others ask what is left out of a prompt, how it ends, what an answer follows, and what cannot be written.
    assert sorted(calls) == ["__call__"] * 3 + ["apply_chat_template"] * 6


def test_answer_with_the_end_token_as_a_word_is_refused_and_named(tokenizer_of):
    tokenizer = tokenizer_of(GOOD_TEMPLATE, eos="b")
    with pytest.raises(DataError, match="record 2: answer: refused by the chat template or tokenizer"):
        encode_records(tokenizer, [Demonstration(user("a"), "a"), Demonstration(user("a"), "a b")], (9, 9))


def test_every_record_that_the_template_refuses_is_named(tokenizer_of):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}" + GOOD_TEMPLATE
    refused = Prompt((Message("system", "a"), Message("user", "b")))
    with pytest.raises(DataError) as caught:
        encode_records(tokenizer_of(template), [Prompt(user("a")), refused, Prompt(user("[U]")), refused], (9, 9))
    message = "prompt: refused by the chat template or tokenizer (no system messages); needed messages as they want them; change them"
    assert [str(problem) for problem in caught.value.problems] == [f"record 2: {message}", f"record 4: {message}"]


# Answers behind a prompt


def test_an_answer_has_the_ids_that_it_has_in_a_history_where_the_tokenizer_puts_a_blank_before_a_text(sentencepiece_of):
    written = (
        "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    tokenizer = sentencepiece_of(written)
    assert tokenizer.tokenize("one") == ["▁one"] and tokenizer.tokenize("\none") == ["▁", "\n", "o", "n", "e"]
    for text in ("one", "  one", "\n\none", "one one\n", "", "é"):
        history = [Message("user", "one"), Message("assistant", text), Message("user", "again")]
        learnt = encode_prompt(tokenizer, history[:1], 100).ids + encode_response(tokenizer, text)
        assert encode_prompt(tokenizer, history, 100).ids[: len(learnt)] == learnt, text


def test_where_a_history_has_that_blank_too_the_answer_keeps_it(sentencepiece_of):
    tokenizer = sentencepiece_of("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert tokenizer.convert_ids_to_tokens(encode_response(tokenizer, "one")) == ["▁one", "</s>"]
