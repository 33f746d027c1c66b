"""Token ids are made before the first stage, once; what is wrong with the data is told as such."""

import json
from pathlib import Path

import pytest

from data.schema import DataError
from pipeline.foreseen import foresee, foresee_evaluation
from pipeline.inputs.prepare import prepare
from pipeline.launch.failure import StageFailed
from pipeline.recipe.load import find_recipe, load_recipe
from pipeline.tokens import _place, make_tokens
from stages.spec import EXIT_MISSING, EXIT_USAGE


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


def test_what_the_process_finds_wrong_with_a_key_is_told_with_its_line():
    recipe = load_recipe(find_recipe("demo"), ["ppo.lora.target_modules=[q_prj]", "ppo.stop_token=x"])
    failed = StageFailed("data: ppo.lora.target_modules: found ['q_prj'], needed others", EXIT_USAGE, [], Path("log"))
    assert str(_place(failed, recipe)) == "--set: ppo.lora.target_modules: found ['q_prj'], needed others"
    stopped = StageFailed("data: ppo.stop_token = '<|pad|>' is the pad token; give another", EXIT_USAGE, [], Path("log"))
    assert str(_place(stopped, recipe)).startswith("--set: ppo.stop_token = ")
    for other in (("data: prompts: found 929 tokens", EXIT_USAGE), ("data: tokens.chat_template: found none", EXIT_MISSING)):
        assert (error := StageFailed(*other, [], Path("log"))) is _place(error, recipe)


@pytest.mark.slow
def test_data_that_cannot_be_held_out_is_told_with_its_file_and_mended_data_is_taken(make, store):
    with pytest.raises(DataError, match=r"demonstrations\.jsonl: data\.demonstrations\.eval: found fewer than two prompts"):
        make([{"prompt": "a", "completion": "b"}])
    assert [path.name for path in (store.root / "tokens").glob(".work-*")] == []
    assert (
        make([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "b"}])[0]["demonstrations"]["eval"]["demonstrations"] == 1
    )
