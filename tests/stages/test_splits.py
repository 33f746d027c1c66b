"""What a stage says of the records that it was given."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stages.process.context import StageContext
from stages.splits import note_repeated_openings

DEMONSTRATIONS = [
    {"prompt": "a", "completion": "plain"},
    {"prompt": "b", "completion": "<think>\nhm"},
    {"prompt": "c", "completion": "<think>x"},
]
COMPARISONS = [{"prompt": "a", "chosen": "fine", "rejected": "no"}, {"prompt": "b", "chosen": "fine", "rejected": "<think>\nno"}]


@pytest.mark.parametrize(
    ("stage", "kind", "rows", "answers", "said"),
    [
        ("sft", "demonstrations", DEMONSTRATIONS, ["plain", "<think>\nhm", "<think>x"], ":2: 2 of 3 answers"),
        ("rm", "comparisons", COMPARISONS, ["fine", "no", "fine", "<think>\nno"], ":2: 1 of 4 answers"),
    ],
)
def test_answers_that_begin_as_the_prompt_ends_are_told_with_file_and_line(make_stage, base_model_dir, stage, kind, rows, answers, said):
    process = make_stage(stage, models={"base": base_model_dir, "sft": base_model_dir})
    tokenizer = AutoTokenizer.from_pretrained(base_model_dir)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{{ '\n' }}{% endif %}"
    path = Path(process.spec.data[kind].train.path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    note_repeated_openings(StageContext(process.spec), tokenizer, kind, answers)
    note_repeated_openings(StageContext(process.spec), tokenizer, kind, ["plain"])
    (event,) = process.events()
    assert event["message"].startswith(f"{path}{said}, the first here, begin with '<think>\\n'")
