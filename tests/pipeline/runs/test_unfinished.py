"""What is said of checkpoints that are left of a stage: which goes on, which does not, and what differs."""

import json
import os

import pytest

from pipeline.plan import Selection, plan
from pipeline.recipe.load import load_recipe
from pipeline.runs.unfinished import describe_next, describe_unfinished
from pipeline.store.directory import open_root

SETTINGS = {"epochs": 2.0, "batch_size": 8, "learning_rate": 1e-3, "seed_of_it": None}


@pytest.fixture
def leave_run(tmp_path):
    """leave_run(name, {setting: value}, steps): the directory of a run that was stopped."""

    def leave(name, changes, steps, age_s=0):
        run_dir = tmp_path / "runs" / name
        for step in steps:
            (run_dir / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
            (run_dir / "checkpoints" / f"checkpoint-{step}" / "COMPLETE.json").write_text("{}")
        (run_dir / "checkpoints" / "checkpoint-999").mkdir(parents=True)  # never finished
        (run_dir / "spec.json").write_text(json.dumps({"settings": SETTINGS | changes | {"save_every": 1}}))
        os.utime(run_dir / "spec.json", (1e9 - age_s, 1e9 - age_s))

    return leave


def test_the_run_of_the_same_inputs_goes_on(tmp_path, leave_run):
    assert describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS) == ""
    leave_run("sft-mine", {}, [5, 10])
    leave_run("sft-other", {"batch_size": 4}, [200])
    assert describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS) == "its unfinished run goes on from checkpoint 10"
    assert describe_unfinished(tmp_path, "rm", "rm-mine", SETTINGS) == ""


def test_a_run_of_another_batch_size_is_left_and_named(tmp_path, leave_run):
    leave_run("sft-old", {"epochs": 9.0}, [5], age_s=60)
    leave_run("sft-newest", {"batch_size": 4, "epochs": 3.0}, [5, 235])
    said = describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS)
    assert said == (
        "it begins anew, and leaves the unfinished run sft-newest (checkpoint 235) as it is, of which differ: "
        "sft.batch_size 4 -> 8, sft.epochs 3.0 -> 2.0"
    )


def test_many_changes_are_counted_and_other_inputs_are_said(tmp_path, leave_run):
    leave_run("sft-newest", dict.fromkeys(SETTINGS, 7), [5])
    assert describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS).endswith("sft.learning_rate 7 -> 0.001, and 1 more")
    leave_run("rm-other", {}, [5])
    assert describe_unfinished(tmp_path, "rm", "rm-mine", SETTINGS).endswith("differ: its data, models, seed or tokens")


def test_an_interrupted_run_says_what_is_there_to_go_on_from(tmp_path, leave_run):
    def tell(name, stage, *, fresh=False):
        with open_root(tmp_path / "runs" / name) as run_dir:
            return describe_next(run_dir, stage, fresh=fresh)

    leave_run("sft-begun", {}, [])  # its checkpoint 999 was never finished
    leave_run("sft-far", {}, [5, 10])
    anew = "the same command begins it anew; what was finished before it is kept"
    assert tell("sft-begun", "sft") == tell("sft-begun", "sft", fresh=True) == f"sft had no checkpoint yet, so {anew}"
    assert tell("sft-far", "sft") == "the same command goes on from the last checkpoint (10)"
    forced = "with --force the same command begins it anew; without, it goes on from the last checkpoint (10)"
    assert tell("sft-far", "sft", fresh=True) == forced
    leave_run("evaluate-one", {}, [])
    assert tell("evaluate-one", "evaluate") == f"evaluate had no answers yet, so {anew}"
    parts = tmp_path / "runs" / "evaluate-one" / "checkpoints" / "evaluate"
    parts.mkdir()
    (parts / ".sft.answers.npz").touch()  # a draft
    assert tell("evaluate-one", "evaluate") == f"evaluate had no answers yet, so {anew}"
    (parts / "sft.answers.npz").touch()
    assert tell("evaluate-one", "evaluate") == "the same command goes on with the answers that it has"


def test_the_plan_says_it(recipe_path, store):
    recipe = load_recipe(recipe_path, [])
    (decision, *_) = plan(recipe, store, Selection())
    run_dir = store.root / "runs" / f"sft-{decision.key[:16]}"
    (run_dir / "checkpoints" / "checkpoint-12").mkdir(parents=True)
    (run_dir / "checkpoints" / "checkpoint-12" / "COMPLETE.json").write_text("{}")
    (run_dir / "spec.json").write_text(json.dumps({"settings": recipe.sft.model_dump(mode="json")}))
    assert plan(recipe, store, Selection())[0].why == "no artifact yet; its unfinished run goes on from checkpoint 12"
    other = plan(load_recipe(recipe_path, ["sft.batch_size=16"]), store, Selection())[0].why
    assert "begins anew" in other and "sft.batch_size 32 -> 16" in other
    assert "unfinished" not in plan(recipe, store, Selection(force=True))[0].why


@pytest.mark.parametrize(
    "spec", ["null", "[]", "{}", '{"settings": []}', "{", "\xff", "[" * 100_000, '{"settings": {"epochs": ' + "1" * 5000 + "}}"]
)
def test_the_damaged_spec_of_an_unfinished_run_is_no_obstacle(tmp_path, leave_run, spec):
    leave_run("sft-other", {}, [5])
    (tmp_path / "runs" / "sft-other" / "spec.json").write_text(spec, encoding="latin-1")
    said = describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS)
    assert said.startswith("it begins anew, and leaves the unfinished run sft-other (checkpoint 5) as it is")


def test_what_is_no_checkpoint_is_not_counted(tmp_path, leave_run):
    leave_run("sft-mine", {}, [5])
    checkpoints = tmp_path / "runs" / "sft-mine" / "checkpoints"
    for name in ("checkpoint-²", "checkpoint-x", f"checkpoint-1{'0' * 23}", "checkpoint-9"):
        (checkpoints / name / "COMPLETE.json").mkdir(parents=True)
    for name in ("checkpoint-³", f"checkpoint-2{'0' * 23}"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "COMPLETE.json").write_text("{}")
    (checkpoints / "checkpoint-7").write_text("a file")
    (checkpoints / "checkpoint-8").symlink_to(checkpoints / "checkpoint-5")
    (tmp_path / "runs" / "sft-file").write_text("")
    assert describe_unfinished(tmp_path, "sft", "sft-mine", SETTINGS) == "its unfinished run goes on from checkpoint 5"
