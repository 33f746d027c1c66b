"""What will run and why: cache keys see what matters and nothing else."""

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from data.schema import DataError
from pipeline.errors import StoreError
from pipeline.inputs import records
from pipeline.inputs.prepare import prepare
from pipeline.plan import Selection, decide, plan
from pipeline.recipe.load import load_recipe
from pipeline.store.compare import flatten
from pipeline.store.manifest import Parent
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages import spec

STAGES = ("sft", "rm", "ppo")


@pytest.fixture
def publish_all(store, publish, recipe_path):
    """A function: publish an artifact per stage as if the recipe with these overrides had run; returns them by kind."""

    def publish_all(*overrides, stages=None):
        recipe = load_recipe(recipe_path, overrides)
        inputs = prepare(recipe, store.root, recipe.stages)
        made = {}
        for stage in stages or recipe.stages:
            decision = decide(stage, recipe, inputs, made, store)
            made[stage] = publish(
                store,
                spec.STAGES[stage].kind,
                {"model/model.safetensors": f"{stage} {decision.key}".encode()},
                cache_key=decision.key,
                config=decision.config,
                data=dict(flatten(inputs.fingerprints(stage, recipe))),
                parents=[Parent(ref=parent.ref, content_id=parent.content_id) for parent in decision.parents.values()],
            )
        return made

    return publish_all


@pytest.fixture
def planned(store, recipe_path):
    """A function: overrides -> {stage: (action, reasons)}."""

    def planned(*overrides, **selection):
        decisions = plan(load_recipe(recipe_path, overrides), store, Selection(**selection))
        return {decision.stage: (decision.action, decision.reasons) for decision in decisions}

    return planned


REUSED = ("reuse", [])
DEPENDS_ON_SFT = "sft will run; it is reused if the same weights come out"


@pytest.mark.parametrize(("ptx_coef", "kinds"), [(0, {"prompts"}), (0.5, {"prompts", "demonstrations"})])
def test_demonstrations_are_an_input_of_ppo_where_it_mixes_them_in_and_only_there(store, recipe_path, ptx_coef, kinds):
    recipe = load_recipe(recipe_path, [f"ppo.ptx_coef={ptx_coef}"])
    inputs = prepare(recipe, store.root, STAGES)
    assert inputs.fingerprints("ppo", recipe).keys() == kinds


def test_the_first_run_has_nothing_to_reuse(planned):
    assert planned() == dict.fromkeys(STAGES, ("run", ["no artifact yet"]))


def test_an_unchanged_recipe_is_reused(planned, publish_all):
    publish_all()
    assert planned() == dict.fromkeys(STAGES, REUSED)


def test_a_change_reruns_what_reads_it_and_says_why(planned, publish_all):
    publish_all()
    assert planned("ppo.kl_coef=0.1") == {"sft": REUSED, "rm": REUSED, "ppo": ("run", ["ppo.kl_coef changed 0.05 -> 0.1"])}
    changed = planned("rm.lora.rank=8", "rm.epochs=2")
    action, reasons = changed["rm"]
    assert action == "run"
    assert reasons[0] == "rm.epochs changed 1.0 -> 2.0"
    lora = '{"rank": 8, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear", "quantize": null, "merge": false}'
    assert reasons[1:] == [f"rm.lora changed null -> {lora}"]  # one thing was changed
    assert changed["ppo"] == ("depends", ["rm will run; it is reused if the same weights come out"])


def test_a_base_in_4_bits_makes_another_artifact(planned, publish_all):
    publish_all("ppo.lora.rank=16")
    assert planned("ppo.lora.rank=16")["ppo"] == REUSED
    assert planned("ppo.lora.rank=16", "ppo.lora.quantize=nf4")["ppo"] == ("run", ['ppo.lora.quantize changed null -> "nf4"'])


def test_a_stage_that_differs_itself_runs_whatever_its_parents_become(planned, publish_all):
    publish_all()
    changed = planned("rm.epochs=2", "ppo.gamma=0.9")
    assert changed["ppo"] == ("run", ["ppo.gamma changed 1.0 -> 0.9"])


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "sft.save_every=7",
        "ppo.save_minutes=7",
        "ppo.log_every=3",
        "ppo.eval_every=3",
        "ppo.rollout.command=[x]",
        "ppo.rollout.sleep=true",
        "hardware.threads=1",
        "hardware.device=cpu",
    ],
)
def test_what_changes_no_weights_reruns_nothing(planned, publish_all, override):
    publish_all()
    assert planned(override) == dict.fromkeys(STAGES, REUSED)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=3", "seed changed 11 -> 3"),
        ("tokens.max_prompt_tokens=9", "tokens.max_prompt_tokens changed 512 -> 9"),
        ("hardware.precision=float32", 'hardware.precision changed "auto" -> "float32"'),
        ("hardware.tf32=true", "hardware.tf32 changed null -> true"),
    ],
)
def test_what_all_stages_read_reruns_all(planned, publish_all, override, reason):
    publish_all()
    changed = planned(override)
    assert changed["sft"][:1] == ("run",)
    assert all(reason in reasons for _, reasons in changed.values())


def test_a_chat_template_in_a_file_counts_by_its_content(planned, publish_all, recipe_path, tmp_path):
    for name, text in (("one", "{{ messages }}"), ("two", "{{ messages }}"), ("three", "{{ messages[0] }}")):
        (tmp_path / f"{name}.jinja").write_text(text)
    publish_all(f"tokens.chat_template={tmp_path / 'one.jinja'}")
    assert planned(f"tokens.chat_template={tmp_path / 'two.jinja'}") == dict.fromkeys(STAGES, REUSED)
    assert planned(f"tokens.chat_template={tmp_path / 'three.jinja'}")["sft"][0] == "run"


def test_another_of_the_named_templates_beside_a_tokenizer_is_another_base_model(planned, publish_all, recipe_path):
    named = recipe_path.parent / "base" / "additional_chat_templates" / "tool_use.jinja"
    named.parent.mkdir()
    named.write_text("{{ messages }}")
    publish_all()
    named.write_text("{{ messages[0] }}")
    assert planned()["sft"] == ("run", ["the base model changed"])


def test_a_judge_reruns_the_stages_that_ask_it_and_not_the_reward_model(planned, publish_all):
    publish_all()
    changed = planned("judge=data.demo.rule:judge")
    reason = 'judge changed null -> "data.demo.rule:judge"'
    assert changed == {"sft": ("run", [reason]), "rm": ("depends", [DEPENDS_ON_SFT]), "ppo": ("run", [reason])}
    unasked = ["sft.eval_samples=0", "ppo.eval_samples=0"]
    publish_all(*unasked)
    assert planned("judge=data.demo.rule:judge", *unasked) == dict.fromkeys(STAGES, REUSED)


def test_a_judge_of_other_code_reruns_what_asks_it_and_says_so(planned, publish_all, recipe_path):
    (recipe_path.parent / "verdict.py").write_text("import words\n")
    (recipe_path.parent / "words.py").write_text("")
    judge = "judge=verdict:judge"
    publish_all(judge)
    assert planned(judge) == dict.fromkeys(STAGES, REUSED)
    (recipe_path.parent / "words.py").write_text("# other words")
    reason = ["the judge's code changed"]
    assert planned(judge) == {"sft": ("run", reason), "rm": ("depends", [DEPENDS_ON_SFT]), "ppo": ("run", reason)}
    assert planned() == {
        stage: ("run", ['judge changed "verdict:judge" -> null']) if stage != "rm" else ("depends", [DEPENDS_ON_SFT]) for stage in STAGES
    }
    unasked = ["sft.eval_samples=0", "ppo.eval_samples=0"]
    publish_all(judge, *unasked)
    (recipe_path.parent / "words.py").write_text("# others again")
    assert planned(judge, *unasked) == dict.fromkeys(STAGES, REUSED)


def test_what_a_base_model_stands_on_reruns_all(planned, publish_all, recipe_path):
    base = recipe_path.parent / "base"
    below = shutil.copytree(base, recipe_path.parent / "below")
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(below)}))
    publish_all()
    assert planned() == dict.fromkeys(STAGES, REUSED)
    (below / "config.json").write_text('{"changed": 1}')
    assert planned()["sft"] == ("run", ["the base model changed"])


def test_a_hubs_model_that_moved_on_reruns_all_and_stages_read_the_commit_that_counts(
    planned, publish_all, store, recipe_path, monkeypatch
):
    from huggingface_hub import constants

    commits = [f"{number:040x}" for number in (1, 2)]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(recipe_path.parent / "hub"))
    refs = recipe_path.parent / "hub" / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commits[0])
    overrides = ["base_model=org/model"]
    publish_all(*overrides)
    assert planned(*overrides) == dict.fromkeys(STAGES, REUSED)
    (refs / "main").write_text(commits[1])
    moved = f"the base model changed hub:org/model@{commits[0]} -> hub:org/model@{commits[1]}"
    assert planned(*overrides)["sft"] == ("run", [moved])
    assert planned(*overrides, f"revision={commits[0]}") == dict.fromkeys(STAGES, REUSED)
    assert prepare(load_recipe(recipe_path, overrides), store.root, STAGES).revision == commits[1]


def test_changed_records_rerun_what_reads_them(planned, publish_all, recipe_path):
    publish_all()
    with (recipe_path.parent / "prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": "one more"}\n')
    assert planned() == {"sft": REUSED, "rm": REUSED, "ppo": ("run", ["data.prompts changed"])}


def test_the_same_records_in_another_file_and_format_are_the_same(planned, publish_all, recipe_path):
    publish_all()
    rows = [json.loads(line) for line in (recipe_path.parent / "prompts.jsonl").read_text().splitlines()]
    (recipe_path.parent / "other.json").write_text(json.dumps([{"extra": 1, **row} for row in rows]))
    assert planned(f"data.prompts={recipe_path.parent / 'other.json'}")["ppo"] == REUSED


def test_another_base_model_reruns_all_and_the_same_elsewhere_nothing(planned, publish_all, recipe_path):
    publish_all()
    base, moved = recipe_path.parent / "base", recipe_path.parent / "moved"
    shutil.copytree(base, moved)
    (moved / "README.md").write_text("a note changes nothing")
    assert planned(f"base_model={moved}") == dict.fromkeys(STAGES, REUSED)
    (moved / "config.json").write_text('{"changed": 1}')
    assert planned(f"base_model={moved}")["sft"] == ("run", ["the base model changed"])


def test_a_parent_with_other_weights_reruns_its_children(store, publish, publish_all, recipe_path):
    made = publish_all()
    recipe = load_recipe(recipe_path)
    other = publish(store, "sft", {"model/model.safetensors": b"other"})
    decision = decide("rm", recipe, prepare(recipe, store.root, STAGES), {"sft": other}, store)
    assert decision.reasons == [f"sft changed {made['sft'].ref} -> sft@v2"]


def test_a_parent_with_the_same_weights_stops_the_rerun(store, publish, publish_all, recipe_path):
    made = publish_all()
    recipe = load_recipe(recipe_path)
    same = publish(
        store, "sft", {"model/model.safetensors": (made["sft"].model_path / "model.safetensors").read_bytes(), "log.txt": b"new"}
    )
    assert same.ref == "sft@v2"
    assert decide("rm", recipe, prepare(recipe, store.root, STAGES), {"sft": same}, store).action == "reuse"


def test_force_runs_the_selected_stages_alone(planned, publish_all):
    publish_all()
    forced = ("run", ["--force was given"])
    assert planned(run=("rm",), force=True) == {"sft": REUSED, "rm": forced}
    assert planned(force=True) == dict.fromkeys(STAGES, forced)


def test_a_needed_stage_that_is_not_selected_has_to_be_there(planned, publish_all):
    publish_all(stages=("sft",))
    assert planned(run=("rm",)) == {"sft": REUSED, "rm": ("run", ["no artifact yet"])}
    with pytest.raises(
        StoreError, match=r"rm: nothing to reuse, because no artifact yet; ppo needs it; run `rlhf run --until ppo`"
    ) as caught:
        planned(run=("ppo",))
    assert caught.value.exit_code == 4


def test_a_first_plan_of_the_demo_writes_nothing(store, tmp_path):
    (tmp_path / "recipe.yaml").write_text("base_model: demo\ndata: demo\n")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert [decision.why for decision in plan(recipe, store, Selection())] == ["no artifact yet"] * 4
    with pytest.raises(StoreError, match="sft: nothing to reuse"):
        plan(recipe, store, Selection(run=("ppo",)))
    assert not store.root.exists()


def test_of_many_reasons_the_first_are_shown(publish_all, store, recipe_path):
    publish_all()
    decisions = plan(
        load_recipe(recipe_path, [f"ppo.{key}=7" for key in ("iterations", "kl_coef", "value_coef", "clip_range", "temperature")]),
        store,
        Selection(),
    )
    assert decisions[-1].why.endswith("; and 1 more")
    assert len(decisions[-1].reasons) == 5


def test_of_many_reasons_other_data_is_among_those_that_are_shown(publish_all, store, recipe_path):
    publish_all()
    with (recipe_path.parent / "prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": "another question"}\n')
    many = [f"ppo.{key}=7" for key in ("iterations", "kl_coef", "value_coef", "clip_range", "temperature")]
    assert plan(load_recipe(recipe_path, many), store, Selection())[-1].why.startswith("data.prompts changed; ppo.clip_range changed ")


def test_bad_lines_of_all_files_are_told_at_once(planned, recipe_path):
    (recipe_path.parent / "prompts.jsonl").write_text('{"prompt": 3}\n{"prompt": "x"}\nnot json\n')
    (recipe_path.parent / "demonstrations.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError) as caught:
        planned()
    places = [str(problem).split(": ")[0].rpartition("/")[2] for problem in caught.value.problems]
    assert places == ["demonstrations.jsonl:1", "prompts.jsonl:1", "prompts.jsonl:3"]


def test_a_note_of_an_earlier_reading_is_not_taken_for_a_changed_file(planned, publish_all, recipe_path, store):
    publish_all()
    assert planned()["ppo"] == REUSED
    assert list((store.root / "notes").glob("prompts-*.json"))
    path = recipe_path.parent / "prompts.jsonl"
    path.write_text(path.read_text().replace("question 3", "question X"))  # same size
    assert planned()["ppo"] == ("run", ["data.prompts changed"])


def test_a_note_of_a_version_that_read_files_otherwise_is_not_taken(planned, publish_all, store, monkeypatch):
    publish_all()
    path = next((store.root / "notes").glob("demonstrations-*.json"))
    note = json.loads(path.read_text().partition("\n")[2])
    other = json.dumps(note | {"fingerprints": note["fingerprints"] | {"train": "sha256:of other records"}})
    path.write_text(f"{hashlib.sha256(other.encode()).hexdigest()}\n{other}")
    assert planned()["sft"] == ("run", ["data.demonstrations changed"])
    monkeypatch.setattr(records, "_NOTES_VERSION", -1)
    assert planned() == dict.fromkeys(STAGES, REUSED)


def test_a_damaged_note_is_read_past(planned, publish_all, store):
    publish_all()
    for note in (store.root / "notes").iterdir():
        note.write_text("{")
    assert planned() == dict.fromkeys(STAGES, REUSED)


@pytest.mark.parametrize(
    ("run", "needed"),
    [(("sft",), ("sft",)), (("rm",), ("sft", "rm")), (("ppo",), STAGES), (("sft", "ppo"), STAGES), (("rm", "ppo"), STAGES)],
)
def test_a_selection_needs_what_its_stages_descend_from(recipe_path, pretraining, run, needed):
    assert Selection(run).needed(load_recipe(recipe_path)) == needed
    assert Selection(run).needed(load_recipe(recipe_path, pretraining)) == ("pretrain", *needed)


def test_a_stage_that_nothing_descends_from_is_needed_by_nobody_else(monkeypatch):
    """The stages are a graph: one more that reads the SFT model stands between none of the others."""
    rows = {"sft": spec.STAGES["sft"], "rm": spec.STAGES["rm"], "sample": replace(spec.STAGES["rm"], data=()), "ppo": spec.STAGES["ppo"]}
    monkeypatch.setattr(spec, "STAGES", rows)
    assert spec.with_ancestors(("ppo",)) == ("sft", "rm", "ppo")
    assert spec.with_ancestors(("sample",)) == ("sft", "sample")


def test_a_pretrain_block_puts_a_stage_before_sft_and_its_absence_takes_it_away(planned, publish_all, pretraining):
    publish_all()
    assert planned(*pretraining) == {
        "pretrain": ("run", ["no artifact yet"]),
        "sft": ("run", ["pretrain changed none -> a new one"]),
        "rm": ("depends", [DEPENDS_ON_SFT]),
        "ppo": ("depends", ["sft and rm will run; it is reused if the same weights come out"]),
    }
    assert publish_all(*pretraining)["sft"].version == 2
    assert planned(*pretraining) == dict.fromkeys(("pretrain", *STAGES), REUSED)
    assert planned() == dict.fromkeys(STAGES, REUSED)  # those of the first version
    assert planned("sft.epochs=3")["sft"] == ("run", ["sft.epochs changed 1.0 -> 3.0", "pretrain changed pretrain@v1 -> none"])


def test_pretraining_runs_again_where_what_it_reads_changed_and_not_otherwise(planned, publish_all, pretraining, recipe_path):
    publish_all(*pretraining)
    for unread in ("tokens.max_prompt_tokens=99", "judge=a:b", "pretrain.save_every=7", "sft.epochs=3"):
        assert planned(*pretraining, unread)["pretrain"] == REUSED, unread
    changed = planned(*pretraining, "pretrain.sequence_length=99")
    assert changed["pretrain"] == ("run", ["pretrain.sequence_length changed 1024 -> 99"])
    assert changed["sft"] == ("depends", ["pretrain will run; it is reused if the same weights come out"])
    (recipe_path.parent / "texts.jsonl").write_text('{"text": "another"}\n{"text": "one"}\n')
    assert planned(*pretraining)["pretrain"] == ("run", ["data.texts changed"])


def test_texts_are_an_input_of_ppo_where_it_mixes_them_in(store, recipe_path, pretraining, planned, publish_all):
    mixing = ("ppo.ptx_coef=0.5", "ppo.ptx_data=texts", pretraining[1])
    recipe = load_recipe(recipe_path, mixing)
    inputs = prepare(recipe, store.root, recipe.stages)
    assert inputs.fingerprints("ppo", recipe).keys() == {"prompts", "texts"}
    publish_all("ppo.ptx_coef=0.5")
    assert planned(*mixing)["ppo"] == (
        "run",
        ["data.demonstrations changed", "data.texts changed", 'ppo.ptx_data changed null -> "texts"'],
    )


def test_a_stage_of_an_older_version_runs_again_and_says_so(planned, publish_all, monkeypatch):
    row = spec.STAGES["ppo"]
    monkeypatch.setitem(spec.STAGES, "ppo", replace(row, version=row.version - 1))
    publish_all()
    monkeypatch.setitem(spec.STAGES, "ppo", row)
    assert planned() == {
        "sft": REUSED,
        "rm": REUSED,
        "ppo": ("run", [f"the stage's code changed (version {row.version - 1} -> {row.version})"]),
    }


def test_a_stage_may_make_artifacts_of_another_name(store, planned, publish_all):
    publish_all("evaluate={}")
    assert planned("evaluate={}") == dict.fromkeys((*STAGES, "evaluate"), REUSED)
    assert store.get("evaluation").ref == "evaluation@v1"
    assert {parent.ref for parent in store.get("evaluation@v1").manifest.parents} == {"sft@v1", "rm@v1", "ppo@v1"}
    assert planned("evaluate.samples=8")["evaluate"] == ("run", ["evaluate.samples changed 16 -> 8"])
    assert planned("evaluate.batch_size=8")["evaluate"] == REUSED


def test_what_is_withdrawn_is_a_reason_of_each_stage_also_of_one_that_waits(store, planned, publish_all):
    made = publish_all("evaluate={}")
    withdraw(store.root, {each.ref: Withdrawal(seal=each.seal, reason=f"because {each.kind}", at="now") for each in made.values()})
    assert planned("evaluate={}") == {
        stage: ("run", [f"{each.ref} is withdrawn: because {each.kind}", *(["no artifact has these inputs yet"] if stage == "sft" else [])])
        for stage, each in made.items()
    }


def test_an_evaluation_reads_what_ppo_kept_and_answers_as_ppo_does(planned, publish_all):
    publish_all("evaluate={}")
    changed = planned("evaluate={}", "ppo.keep_every=5")
    assert changed["ppo"] == ("run", ["ppo.keep_every changed null -> 5"])
    assert changed["evaluate"] == ("depends", ["ppo will run; it is reused if the same weights come out"])
    assert planned("evaluate={}", "ppo.temperature=0.5")["evaluate"] == ("run", ["evaluate.temperature changed 1.0 -> 0.5"])
    assert planned("evaluate.temperature=1.0")["evaluate"] == REUSED


def test_a_judge_reruns_the_evaluation(planned, publish_all):
    publish_all("evaluate={}")
    changed = planned("evaluate={}", "judge=data.demo.rule:judge", "sft.eval_samples=0", "ppo.eval_samples=0")
    assert changed["evaluate"] == ("run", ['judge changed null -> "data.demo.rule:judge"'])


def test_without_kept_models_ppo_has_the_key_from_before_there_were_any(store, recipe_path):
    recipe = load_recipe(recipe_path)
    inputs = prepare(recipe, store.root, recipe.stages)
    parents = {"sft": SimpleNamespace(content_id="s"), "rm": SimpleNamespace(content_id="r")}
    config = decide("ppo", recipe, inputs, parents, store).config["ppo"]
    assert not {"keep_every", "publish", "publish_by", "publish_max_kl"} & config.keys()
    for overrides, keys in ((), set()), (["rm.margin=grade"], {"margin", "margin_scale"}):
        changed = load_recipe(recipe_path, overrides)
        config = decide("rm", changed, inputs, {"sft": parents["sft"]}, store).config["rm"]
        assert {"margin", "margin_scale"} & config.keys() == keys


def test_what_ppo_publishes_reruns_it_and_then_how_often_it_chooses_does_too(planned, publish_all):
    assert publish_all()["ppo"]
    assert planned("ppo.eval_every=3", "ppo.publish_max_kl=5.0")["ppo"] == REUSED  # nothing uses it
    assert planned("ppo.publish=best")["ppo"][0] == "run"
    publish_all("ppo.publish=best")
    assert planned("ppo.publish=best")["ppo"] == REUSED
    assert planned("ppo.publish=best", "ppo.eval_every=3")["ppo"] == ("run", ["ppo.eval_every changed 50 -> 3"])
    assert planned("ppo.publish=best", "ppo.publish_max_kl=5.0")["ppo"] == ("run", ["ppo.publish_max_kl changed null -> 5.0"])
