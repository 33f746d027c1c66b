"""Tiny base models whose tokenizers are laid out as those of known families: special tokens, template, and rows of the embeddings."""

import json
from dataclasses import dataclass, field

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = ["Where is my order? It is on its way.", "Say one: one. Say two: two.", "User:\nAssistant:\n", "the quick brown fox"] * 5

QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Qwen3's, as far as it goes: thoughts leave the history, an answer without any gets empty ones, and `enable_thinking` is a variable.
QWEN3 = """{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {%- if loop.last %}
            {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA33 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Layout:
    """What a family's tokenizer and embeddings are like; `plain` are added tokens that are not special, `spare` rows without a token."""

    special: tuple[str, ...]
    eos: str | None = None
    pad: str | None = None
    bos: str | None = None
    unk: str | None = None
    plain: tuple[str, ...] = ()
    template: str | dict[str, str] | None = None
    spare: int = 0
    adds_bos: bool = False
    config: dict = field(default_factory=dict)


QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_pad|>")
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_pad|>")
LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)
LLAMA30_SPECIAL = tuple(token for token in LLAMA3_SPECIAL if "pad" not in token)
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")

LAYOUTS = {
    "qwen2.5": Layout(QWEN_SPECIAL, eos="<|endoftext|>", pad="<|endoftext|>", plain=QWEN_PLAIN, template=QWEN, spare=7),
    "qwen2.5-instruct": Layout(QWEN_SPECIAL, eos="<|im_end|>", pad="<|endoftext|>", plain=QWEN_PLAIN, template=QWEN, spare=7),
    "qwen3": Layout(QWEN_SPECIAL, eos="<|im_end|>", pad="<|endoftext|>", plain=("<think>", "</think>"), template=QWEN3),
    "chatml-tokens": Layout(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|endoftext|>"),
    "llama-3.1": Layout(LLAMA3_SPECIAL, eos="<|end_of_text|>", bos="<|begin_of_text|>", adds_bos=True),
    "llama-3.0": Layout(LLAMA30_SPECIAL, eos="<|end_of_text|>", bos="<|begin_of_text|>", adds_bos=True),
    "llama-3.3-instruct": Layout(LLAMA3_SPECIAL, eos="<|eot_id|>", bos="<|begin_of_text|>", template=LLAMA33, adds_bos=True),
    "llama-2": Layout(("<unk>", "<s>", "</s>"), eos="</s>", bos="<s>", unk="<unk>", adds_bos=True),
    "gemma": Layout(GEMMA_SPECIAL, eos="<eos>", pad="<pad>", bos="<bos>", unk="<unk>", plain=("<unused0>",), adds_bos=True),
    "pythia": Layout(("<|endoftext|>", "<|padding|>"), eos="<|endoftext|>", bos="<|endoftext|>", spare=4),
    "spare-rows": Layout(("<|endoftext|>",), eos="<|endoftext|>", bos="<|endoftext|>", spare=4),
    "gpt2": Layout(("<|endoftext|>",), eos="<|endoftext|>", bos="<|endoftext|>", unk="<|endoftext|>"),
    "falcon": Layout((">>TITLE<<", ">>INTRODUCTION<<", "<|endoftext|>"), eos="<|endoftext|>"),
    "phi-3": Layout(
        ("<s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|end|>", "<|user|>"), eos="<|endoftext|>", bos="<s>", template=PHI3
    ),
    "no-end": Layout(("</s>", "<pad>"), pad="<pad>"),
    "nothing": Layout(()),
}


def make_tokenizer(layout):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in layout.special])
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in layout.plain])
    if layout.adds_bos:
        core.post_processor = TemplateProcessing(single=f"{layout.bos} $A", special_tokens=[(layout.bos, core.token_to_id(layout.bos))])
    named = {"eos_token": layout.eos, "pad_token": layout.pad, "bos_token": layout.bos, "unk_token": layout.unk}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{name: token for name, token in named.items() if token})
    if layout.template:
        tokenizer.chat_template = layout.template
    return tokenizer


def write_base(directory, layout, *, weights=False, hidden=32):
    """Write tokenizer and config, and with `weights` a tiny Llama; returns how many embedding rows it has."""
    tokenizer = make_tokenizer(layout)
    rows = max(tokenizer.get_vocab().values()) + 1 + layout.spare
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=rows, num_key_value_heads=2, max_position_embeddings=512, **sizes, **ids, **layout.config)
    tokenizer.save_pretrained(directory)
    if weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    else:
        (directory / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    return rows
