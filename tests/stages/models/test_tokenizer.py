"""A base model's tokenizer is settled for the families' own layouts, and its artifact renders the same ids without our code."""

import json

import pytest
from transformers import AutoTokenizer

from data.schema import DataError, Demonstration, Message
from data.tokens import encode_prompt, encode_records, encode_response
from stages.blocks import TokenSettings
from stages.models.tokenizer import load_tokenizer, settle_tokenizer
from stages.process.errors import StageError
from tests.stages.models.lookalikes import LAYOUTS, Layout, write_base

CHAT = [{"role": "user", "content": "Say one"}, {"role": "assistant", "content": "one."}, {"role": "user", "content": "again"}]
USER = [Message("user", "Say one")]


def settle(directory, layout, **tokens):
    write_base(directory, layout)
    return settle_tokenizer(str(directory), TokenSettings.model_validate(tokens))


@pytest.mark.parametrize(
    ("family", "prompt", "end", "pad"),
    [
        ("qwen2.5", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "<|im_end|>", "<|endoftext|>"),
        ("qwen2.5-instruct", "<|im_start|>system\n", "<|im_end|>", "<|endoftext|>"),
        ("qwen3", "<|im_start|>user\nSay one<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>"),
        ("chatml-tokens", "<|im_start|>user\nSay one<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>"),
        ("llama-3.1", "<|begin_of_text|>User:\nSay one\n\nAssistant:\n", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
        ("llama-3.0", "<|begin_of_text|>User:\n", "<|end_of_text|>", "<|reserved_special_token_0|>"),
        ("llama-3.3-instruct", "<|begin_of_text|><|start_header_id|>system", "<|eot_id|>", "<|finetune_right_pad_id|>"),
        ("llama-2", "<s>User:\nSay one\n\nAssistant:\n", "</s>", "<unk>"),
        ("gemma", "<bos>User:\nSay one\n\nAssistant:\n", "<eos>", "<pad>"),
        ("pythia", "User:\nSay one\n\nAssistant:\n", "<|endoftext|>", "<|padding|>"),
        ("spare-rows", "User:\nSay one\n\nAssistant:\n", "<|endoftext|>", "<|pad|>"),
        ("gpt2", "User:\nSay one\n\nAssistant:\n", "<|endoftext|>", "<|pad|>"),
        ("falcon", "User:\nSay one\n\nAssistant:\n", "<|endoftext|>", ">>TITLE<<"),
        ("phi-3", "<|user|>\nSay one<|end|>\n<|assistant|>\n", "<|end|>", "<|placeholder1|>"),
        ("no-end", "User:\n", "</s>", "<pad>"),
        ("nothing", "User:\n", "<|endoftext|>", "<|pad|>"),
    ],
)
def test_a_familys_base_gets_a_template_an_end_and_a_pad_and_plain_transformers_renders_the_same(tmp_path, family, prompt, end, pad):
    tokenizer, note = settle(tmp_path / "base", LAYOUTS[family])
    assert (tokenizer.eos_token, tokenizer.pad_token) == (end, pad) and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert f"end token: {end} (" in note and f"pad token: {pad} (" in note and "\n" not in note

    tokenizer.save_pretrained(tmp_path / "artifact")
    plain = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    assert (plain.eos_token, plain.pad_token) == (end, pad)
    assert plain.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False).startswith(prompt)
    messages = [Message(each["role"], each["content"]) for each in CHAT]
    ids = encode_prompt(tokenizer, messages, 400).ids
    assert plain.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False) == ids
    assert encode_response(load_tokenizer(str(tmp_path / "artifact")), "one.")[-1] == plain.eos_token_id
    # What was learnt of an answer is what stands in a history.
    if family != "qwen3":
        learnt = encode_prompt(tokenizer, USER, 400).ids + encode_response(tokenizer, "one.")
        assert ids[: len(learnt)] == learnt


@pytest.mark.parametrize("family", LAYOUTS)
def test_settling_what_was_settled_changes_nothing(tmp_path, family):
    tokenizer, _ = settle(tmp_path / "base", LAYOUTS[family])
    tokenizer.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["vocab_size"] = max(config["vocab_size"], len(tokenizer))  # as the stage leaves the model
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    again, _ = settle_tokenizer(str(tmp_path / "base"), TokenSettings())
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_token_id, again.pad_token_id, len(again)) == (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer))


@pytest.mark.slow
def test_new_tokens_are_made_only_where_the_vocabulary_has_none_to_spare(tmp_path):
    grown = {}
    for family, layout in LAYOUTS.items():
        rows = write_base(tmp_path / family, layout)
        tokenizer, _ = settle_tokenizer(str(tmp_path / family), TokenSettings())
        if len(tokenizer) > rows - layout.spare:
            grown[family] = tokenizer.pad_token_id - rows
    assert grown == {"spare-rows": -4, "gpt2": 0, "nothing": 1}  # `nothing` gets an end token too


def test_of_named_templates_the_default_is_taken_and_another_can_be_named(tmp_path):
    named = {"default": "{{ '<a>' + messages[0]['content'] }}", "tool_use": "{{ '<b>' + messages[0]['content'] }}"}
    layout = Layout(("<|end|>", "<|pad|>"), eos="<|end|>", pad="<|pad|>", template=named)
    tokenizer, note = settle(tmp_path / "one", layout)
    assert tokenizer.chat_template == named["default"] and "`default` of 2" in note
    assert settle(tmp_path / "two", layout, chat_template="tool_use")[0].chat_template == named["tool_use"]
    with pytest.raises(StageError, match=r"found 'rag' .* auto, chatml, plain, default, tool_use") as caught:
        settle(tmp_path / "three", layout, chat_template="rag")
    assert caught.value.exit_code == 4


def test_a_template_in_a_file_and_an_end_token_of_ones_own_are_taken(tmp_path):
    (tmp_path / "own.jinja").write_text("\ufeff{{ '<<' + messages[-1]['content'] + '>>' }}\n", encoding="utf-8")
    tokenizer, note = settle(tmp_path / "base", LAYOUTS["qwen2.5"], chat_template=str(tmp_path / "own.jinja"), end_token="<|fim_pad|>")
    assert tokenizer.apply_chat_template(CHAT[:1], tokenize=False) == "<<Say one>>"
    assert tokenizer.eos_token == "<|fim_pad|>" and "own.jinja" in note and "as tokens.end_token says" in note


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"chat_template": "chatml"}, r"tokens.chat_template: found chatml, needed <\|im_start\|> and <\|im_end\|>"),
        ({"end_token": "<|nowhere|>"}, r"tokens.end_token: found '<\|nowhere\|>', needed one token"),
        ({"template_args": {"enable_thinkin": False}}, "tokens.template_args.enable_thinkin: the chat template reads no variable"),
    ],
)
def test_what_is_not_there_is_refused_by_its_key(tmp_path, tokens, said):
    with pytest.raises(StageError, match=said) as caught:
        settle(tmp_path / "base", LAYOUTS["gpt2"], **tokens)
    assert caught.value.exit_code == 2


TURNS = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n"


def test_a_template_that_opens_no_answer_gets_the_opening_that_its_answers_have(tmp_path):
    layout = Layout(("<|endoftext|>", "<|im_end|>"), eos="<|endoftext|>", template=TURNS)
    tokenizer, note = settle(tmp_path / "base", layout)
    assert "the tokenizer's own, with '<|assistant|>\\n' added before an answer to come" in note
    learnt = encode_prompt(tokenizer, USER, 400).ids + encode_response(tokenizer, "one.")
    tokenizer.save_pretrained(tmp_path / "artifact")
    plain = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    history = plain.apply_chat_template(CHAT, return_dict=False)
    assert history[: len(learnt)] == learnt and plain.decode(history) == "".join(
        f"<|{each['role']}|>\n{each['content']}<|im_end|>\n" for each in CHAT
    )
    once = tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "base")
    assert settle_tokenizer(str(tmp_path / "base"), TokenSettings())[0].chat_template == once


def test_a_template_is_found_where_models_that_take_images_have_it_and_an_empty_one_is_none(tmp_path):
    layout = Layout(("<|endoftext|>", "<|im_end|>"), eos="<|endoftext|>")
    write_base(tmp_path / "base", layout)
    (tmp_path / "base" / "chat_template.json").write_text(json.dumps({"chat_template": "\ufeff" + TURNS}))
    tokenizer, note = settle_tokenizer(str(tmp_path / "base"), TokenSettings())
    assert "the tokenizer's own" in note and tokenizer.chat_template.startswith(TURNS[:20])
    for nothing in ("{}", '{"chat_template": " "}', "[]", "{"):
        (tmp_path / "base" / "chat_template.json").write_text(nothing)
        assert "plain text" in settle_tokenizer(str(tmp_path / "base"), TokenSettings())[1]


def test_a_template_that_cannot_render_is_refused(tmp_path):
    with pytest.raises(DataError, match="chat_template: cannot render a user's message"):
        settle(tmp_path / "base", Layout(("</s>",), eos="</s>", template="{{ 1 / 0 }}"))


def test_a_template_of_ones_own_that_cannot_render_is_told_with_its_file(tmp_path):
    (tmp_path / "own.jinja").write_text("{% if messages %}{{ messages[0]['content'] }}")
    with pytest.raises(DataError, match=rf"^{tmp_path}/own\.jinja: chat_template: cannot render a user's message \(Unexpected end"):
        settle(tmp_path / "base", LAYOUTS["gpt2"], chat_template=str(tmp_path / "own.jinja"))


def test_thinking_is_switched_off_in_the_published_template(tmp_path):
    tokenizer, note = settle(tmp_path / "base", LAYOUTS["qwen3"], template_args={"enable_thinking": False})
    tokenizer.save_pretrained(tmp_path / "artifact")
    plain = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    text = plain.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nSay one<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert "an answered turn" not in note  # now it is rendered as the prompt and the answer


def test_thoughts_are_learnt_whole_behind_a_history_that_is_rendered_without_them(tmp_path):
    tokenizer, note = settle(tmp_path / "base", LAYOUTS["qwen3"])
    assert "the template renders an answered turn otherwise: answers are learnt behind the prompt as it stands at inference" in note
    turns = [Message("user", "Say 1"), Message("assistant", "<think>hm</think>1"), Message("user", "again")]
    first, second = encode_records(
        tokenizer, [Demonstration(tuple(turns[:1]), turns[1].content), Demonstration(tuple(turns), "<think>again</think>1")], (99, 99)
    )
    assert tokenizer.decode(first.responses[0]) == "<think>hm</think>1<|im_end|>"
    assert tokenizer.decode(second.responses[0]) == "<think>again</think>1<|im_end|>"
    history = "<|im_start|>user\nSay 1<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n"
    assert tokenizer.decode(second.prompt_ids) == history + "<|im_start|>assistant\n"


def test_a_clock_stands_still_at_a_day_that_is_the_same_for_everyone(tmp_path):
    tokenizer, note = settle(tmp_path / "base", LAYOUTS["llama-3.3-instruct"])
    assert "clock stands at 2025-01-01" in note
    assert "Today Date: 01 Jan 2025\n" in tokenizer.apply_chat_template(CHAT[:1], tokenize=False)
    other, _ = settle(tmp_path / "other", LAYOUTS["llama-3.3-instruct"], template_args={"date": "2026-03-09"})
    other.save_pretrained(tmp_path / "artifact")
    plain = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    assert "Today Date: 09 Mar 2026\n" in plain.apply_chat_template(CHAT[:1], tokenize=False)
    named, _ = settle(tmp_path / "named", LAYOUTS["llama-3.3-instruct"], template_args={"date_string": "26 Jul 2024"})
    assert "Today Date: 26 Jul 2024\n" in named.apply_chat_template(CHAT[:1], tokenize=False)
    with pytest.raises(StageError, match=r"template_args.date: found 'today', needed a day such as 2025-01-31"):
        settle(tmp_path / "wrong", LAYOUTS["llama-3.3-instruct"], template_args={"date": "today"})


def test_tokens_without_an_embedding_row_are_refused_unless_nothing_can_use_them(tmp_path):
    base = tmp_path / "base"
    rows = write_base(base, LAYOUTS["qwen2.5"])
    tokenizer = AutoTokenizer.from_pretrained(base)

    def shrink(num_rows):
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"vocab_size": num_rows}))

    tokenizer.add_tokens(["<tool_0>", "<tool_1>"])
    tokenizer.save_pretrained(base)
    shrink(rows - 7)
    with pytest.raises(StageError) as caught:
        settle_tokenizer(str(base), TokenSettings())
    assert f"the tokenizer has {rows - 7 + 2} tokens, the model {rows - 7} embedding rows (<tool_0>, <tool_1>" in str(caught.value)
    assert caught.value.exit_code == 3

    # Gemma 3: a special token for images, which no text turns into, behind the rows of the text model.
    rows = write_base(base, LAYOUTS["gemma"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(base)
    _, note = settle_tokenizer(str(base), TokenSettings())
    assert "1 special tokens without an embedding row are never used (<image_soft_token>)" in note


def test_a_pad_token_that_was_added_without_a_row_is_not_taken(tmp_path):
    rows = write_base(tmp_path, LAYOUTS["llama-3.0"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    settled, note = settle_tokenizer(str(tmp_path), TokenSettings())
    assert settled.pad_token == "<|reserved_special_token_0|>" and settled.pad_token_id < rows and "[PAD]" in note


def test_the_demos_tokenizer_is_taken_as_it_is(base_model_dir):
    own = AutoTokenizer.from_pretrained(base_model_dir)
    tokenizer, note = settle_tokenizer(str(base_model_dir), TokenSettings())
    assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token) == (own.chat_template, own.eos_token, own.pad_token)
    assert tokenizer.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
    assert note == (
        "chat template: the tokenizer's own; end token: <|end|> (what the chat template writes after an answer); "
        "pad token: <|pad|> (the tokenizer's own)"
    )


def test_an_artifact_whose_pad_token_equals_its_end_token_is_refused(tmp_path):
    write_base(tmp_path, LAYOUTS["qwen2.5"])
    with pytest.raises(DataError, match="pad_token: is the end token"):
        load_tokenizer(str(tmp_path))
