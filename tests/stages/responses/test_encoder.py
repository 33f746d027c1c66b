"""Encoders as judges: tiny BERT and DeBERTa, made here, against their own forward of one pair at a time."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from data.schema import Message
from stages.process.errors import StageError
from stages.responses.judge_model import JudgeModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "when", "does", "it", "open", "at", "nine", "never", "sorry"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
QUESTION, ANSWERS = "when does it open", ["at nine", "never never never sorry", "it does open at nine"]
FAMILIES = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "deberta": (DebertaV2Config, DebertaV2ForSequenceClassification),
}


@pytest.fixture
def make(tmp_path):
    """Write an encoder with so many labels; returns its directory."""

    def make(family="bert", labels=1):
        tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        ends = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path)
        torch.manual_seed(3)
        config_class, model_class = FAMILIES[family]
        words = {"pad_token_id": 0, "type_vocab_size": 0 if family == "deberta" else 2}
        config = config_class(**SIZES, **words, max_position_embeddings=32, num_labels=labels, initializer_range=0.5)
        model_class(config).save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_scores_pairs_as_its_own_forward_does_of_each_alone(make, plain_hardware, family):
    path = make(family)
    judge = JudgeModel(str(path), None, plain_hardware, torch.device("cpu"))
    assert judge.is_encoder
    found = judge.score([[Message("user", QUESTION)]] * 3, ANSWERS, [True] * 3)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    with torch.no_grad():
        alone = [model(**tokenizer(QUESTION, answer, return_tensors="pt")).logits.item() for answer in ANSWERS]
    assert found == pytest.approx(alone, abs=1e-5) and len({round(score, 3) for score in found}) == 3


def test_an_encoder_reads_a_whole_conversation_and_cuts_nothing(make, plain_hardware):
    judge = JudgeModel(str(make()), None, plain_hardware, torch.device("cpu"))
    turns = [Message("user", QUESTION), Message("assistant", "sorry"), Message("user", "open")]
    (whole,) = judge.score([turns], ["never"], [True])
    (last,) = judge.score([turns[-1:]], ["never"], [True])
    assert whole != pytest.approx(last, abs=1e-3)
    with pytest.raises(ValueError, match=r"evaluate\.judge\.reward_model: .*found a pair of 47 tokens, needed at most 32; take another"):
        judge.score([turns[:1]], ["never " * 40], [True])


def test_a_pair_may_be_as_long_as_there_are_positions_of_which_roberta_leaves_those_of_padding_out(make, plain_hardware):
    for family, most in (("bert", 32), ("roberta", 31)):
        judge = JudgeModel(str(make(family)), None, plain_hardware, torch.device("cpu"))
        words = most - len(["[CLS]", "when", "[SEP]", "[SEP]"])
        assert len(judge.score([[Message("user", "when")]], ["never " * words], [True])) == 1
        with pytest.raises(ValueError, match=rf"found a pair of {most + 1} tokens, needed at most {most}; take another judge"):
            judge.score([[Message("user", "when")]], ["never " * (words + 1)], [True])


def test_a_classifier_and_a_head_that_is_missing_are_refused_in_one_line(make, plain_hardware):
    with pytest.raises(StageError, match="found an encoder with 3 labels, needed one, a score; take a reward model"):
        JudgeModel(str(make(labels=3)), None, plain_hardware, torch.device("cpu"), "sft.judge.reward_model")
    path = make()
    BertForSequenceClassification.from_pretrained(path).bert.save_pretrained(path)
    with pytest.raises(StageError, match=r"sft\.judge\.reward_model: .*classifier\.bias.* would have been drawn at random"):
        JudgeModel(str(path), None, plain_hardware, torch.device("cpu"), "sft.judge.reward_model")
