"""Answer sets are read, or every bad line is told."""

import json

import pytest

from data.answers import AnswerSet, iter_answer_sets
from data.schema import DataError, Message
from stages.spec import DataSource

GOOD = {"prompt": "Where?", "completions": ["Here.", "There."]}


@pytest.fixture
def read(tmp_path):
    def read(*rows):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return list(iter_answer_sets(DataSource.model_validate({"path": str(path)})))

    return read


def test_a_set_has_prompt_answers_models_and_source(read):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"}]
    found = read({**GOOD, "models": ["sft@v1", "ppo@v1"], "source": "mail"}, {**GOOD, "prompt": messages})
    assert found[0] == AnswerSet((Message("user", "Where?"),), ("Here.", "There."), ("sft@v1", "ppo@v1"), "mail")
    assert found[1].prompt[0] == Message("system", "Be kind.")
    assert len({each.id for each in found}) == 2


def test_whether_a_set_was_chosen_is_kept_and_is_no_part_of_what_it_is_known_by(read):
    chosen, plain = read({**GOOD, "arm": "chosen"})[0], read(GOOD)[0]
    assert (chosen.arm, plain.arm) == ("chosen", "") and chosen.id == plain.id
    assert chosen.to_row()["arm"] == "chosen" and "arm" not in plain.to_row()
    with pytest.raises(DataError, match="arm: found 3"):
        read({**GOOD, "arm": 3})


def test_its_id_is_of_prompt_and_answers_alone(read):
    one, other = read({**GOOD, "source": "a"})[0], read({**GOOD, "models": ["x", "y"]})[0]
    assert one.id == other.id != read({**GOOD, "completions": ["There.", "Here."]})[0].id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Where?"}, "completions: found null; needed a list of answers"),
        ({**GOOD, "completions": ["one"]}, "completions: "),
        ({**GOOD, "completions": [str(n) for n in range(10)]}, "completions: found 10 answers; needed 9 at most"),
        ({**GOOD, "models": ["sft"]}, "models: found 1 for 2 answers"),
        ({"completions": ["a", "b"]}, "prompt: "),
        (GOOD, "found the prompt and answers of"),
        ([1], "needed a JSON object"),
    ],
)
def test_a_bad_line_is_told(read, row, said):
    with pytest.raises(DataError) as error:
        read(GOOD, row)
    assert "answers.jsonl:2: " in str(error.value) and said in str(error.value)


def test_an_empty_file_is_told(read):
    with pytest.raises(DataError, match="found no answers"):
        read()
