"""Token ids are made before the first stage, once; what is wrong with the data is told as such."""

import json

import pytest

from data.schema import DataError
from pipeline.foreseen import foresee, foresee_evaluation
from pipeline.inputs.prepare import prepare
from pipeline.recipe.load import load_recipe
from pipeline.tokens import make_tokens


@pytest.fixture
def make(tmp_path, base_model_dir, store, warm):
    """make(demonstrations, **tokens) -> (counts, events) of a recipe with the demo's tokenizer and few records."""

    def make(demonstrations, **tokens):
        rows = {
            "demonstrations": demonstrations,
            "comparisons": [{"prompt": f"{i}", "chosen": "yes", "rejected": "no"} for i in range(8)],
            "prompts": [{"prompt": f"{i}"} for i in range(8)],
        }
        for kind, records in rows.items():
            (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        recipe = tmp_path / "recipe.yaml"
        data = {kind: str(tmp_path / f"{kind}.jsonl") for kind in rows}
        tokens = {"max_prompt_tokens": 96, "max_response_tokens": 96, **tokens}  # the base model has 256 positions
        recipe.write_text(json.dumps({"base_model": str(base_model_dir), "data": data, "tokens": tokens}))
        resolved, events = load_recipe(recipe, []), []
        return make_tokens(resolved, prepare(resolved, store.root, resolved.stages), store.root, events.append), events, resolved

    return make


@pytest.mark.slow
def test_ids_of_all_kinds_are_made_once_and_losses_are_told(make, store):
    demonstrations = [{"prompt": f"Where is {i}?", "completion": "It is here. " * (9 if i == 3 else 1)} for i in range(9)]
    counts, events, recipe = make(demonstrations, max_response_tokens=12)
    assert counts.keys() == {"demonstrations", "comparisons", "prompts"}
    assert sum(counts["demonstrations"][split]["demonstrations"] for split in ("train", "eval")) == 9
    assert counts["demonstrations"]["train"]["responses_dropped"] == 1
    assert events[-1]["event"] == "progress"
    assert foresee(recipe, counts) == {
        "demonstrations": [
            "1 of 9 demonstrations (11%) are left out: 1 of 9 demonstrations dropped (longer than 12 tokens); raise "
            "tokens.max_response_tokens or shorten them"
        ],
        "comparisons": [],
        "prompts": foresee_evaluation(counts["prompts"]["eval"]["prompts"], has_judge=False),
    }
    again, events, _ = make(demonstrations, max_response_tokens=12)
    assert again == counts and events == []  # no process was started
    assert {path.name.partition("-")[0] for path in (store.root / "tokens").iterdir() if not path.name.startswith(".")} == {
        *counts,
        "report",
    }
    for directory in (store.root / "tokens").glob("prompts-*"):
        directory.rename(directory.with_name("moved"))
    assert make(demonstrations, max_response_tokens=12)[1] != []


@pytest.mark.slow
def test_data_that_cannot_be_held_out_is_told_with_its_file_and_mended_data_is_taken(make, store):
    with pytest.raises(DataError, match=r"demonstrations\.jsonl: data\.demonstrations\.eval: found fewer than two prompts"):
        make([{"prompt": "a", "completion": "b"}])
    assert [path.name for path in (store.root / "tokens").glob(".work-*")] == []
    assert (
        make([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "b"}])[0]["demonstrations"]["eval"]["demonstrations"] == 1
    )
