"""How long the records on this machine are, and what a trace makes of it."""

import json

from pytest import fixture
from transformers import AutoTokenizer

from data.schema import Message
from data.tokens import encode_prompt, encode_response
from stages.blocks import HardwareSettings, TokenSettings
from stages.settings import RMSettings
from stages.spec import DataSource, DataSplits
from stages.tracing import lengths
from stages.tracing.lengths import read_lengths
from stages.tracing.report import TraceSpec

LIMITS = (64, 40)
# Word counts of (prompt, answers): the longest prompt is held out, the fourth answer of the third is too long to be used.
TRAIN = [(3, [5, 2]), (4, [9, 9, 9]), (2, [1, 1, 1, 90])]
HELD_OUT = [(12, [3, 1])]


@fixture(scope="module")
def tokenizer(base_model_dir):
    return AutoTokenizer.from_pretrained(base_model_dir)


@fixture
def splits(tmp_path):
    paths = []
    for name, rows in (("train", TRAIN), ("eval", HELD_OUT)):
        path = tmp_path / f"{name}.jsonl"
        lines = [
            {"prompt": f"{number} " + "a " * words, "completions": [f"{k} " + "b " * n for k, n in enumerate(answers)]}
            | {"ranks": list(range(1, len(answers) + 1))}
            for number, (words, answers) in enumerate(rows)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(DataSource(path=str(path)))
    return DataSplits(train=paths[0], eval=paths[1])


def count(tokenizer, rows):
    """(tokens of the prompt, of each answer) of each record."""
    prompts = [
        encode_prompt(tokenizer, [Message(role="user", content=f"{n} " + "a " * words)], 64).ids for n, (words, _) in enumerate(rows)
    ]
    answers = [[len(encode_response(tokenizer, f"{k} " + "b " * n)) for k, n in enumerate(each)] for _, each in rows]
    return [(len(prompt), [n for n in each if n <= LIMITS[1]]) for prompt, each in zip(prompts, answers, strict=True)]


def test_the_longest_prompt_and_answer_of_all_splits_are_found(tokenizer, splits):
    found = read_lengths(tokenizer, "comparisons", splits, LIMITS)
    train, held_out = count(tokenizer, TRAIN), count(tokenizer, HELD_OUT)
    assert found.longest == (held_out[0][0], max(train[1][1])) and found.longest < LIMITS
    assert found.most_answers == 3
    assert found.largest == sorted((prompt + sum(answers) for prompt, answers in train + held_out), reverse=True)


def test_of_too_many_records_the_limits_hold(tokenizer, splits, monkeypatch):
    monkeypatch.setattr(lengths, "_ALL", 2)
    found = read_lengths(tokenizer, "comparisons", splits, LIMITS)
    assert (found.records, found.longest, found.largest) == (3, None, [])
    assert make_spec().find_longest("comparisons") == (64, 40)


def test_a_micro_batch_holds_no_more_than_the_largest_records_together():
    spec = make_spec(longest={"comparisons": (20, 30)}, largest={"comparisons": [90, 70, 50]})
    assert spec.find_longest("comparisons") == (20, 30)
    assert spec.find_longest("prompts") == (64, 40)
    assert [spec.count_most("comparisons", records) for records in (1, 2, 3, 5)] == [90, 160, 210, 310]
    assert spec.count_most("prompts", 2) is None


def make_spec(**given):
    tokens = TokenSettings(max_prompt_tokens=LIMITS[0], max_response_tokens=LIMITS[1])
    stages = {"rm": RMSettings().model_dump(mode="json")}
    return TraceSpec(base_model="none", tokens=tokens, hardware=HardwareSettings(), stages=stages, report_path="none", **given)
