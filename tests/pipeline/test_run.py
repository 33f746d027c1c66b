"""A run: reuse, launch, publish, resume. The stages are small programs that obey the contract (fake_stage.py)."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import pipeline.run as run_module
from data.schema import DataError
from pipeline.contract import make_spec
from pipeline.errors import ConfigError, ResourceError, StoreError
from pipeline.launch.failure import StageFailed
from pipeline.plan import Selection
from pipeline.recipe.load import load_recipe
from pipeline.run import run
from pipeline.store.removal import collect
from pipeline.store.store import Store
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages.spec import EXIT_MISSING
from stages.warnings.told import read_told
from tests.chat_server import ChatServer

STAGES = ("sft", "rm", "ppo")


class Recorder:
    """A view that remembers what it was told."""

    def __init__(self):
        self.told = []

    def reading(self, kind, count):
        raise AssertionError("a few records are no news")

    def tokens_event(self, event):
        raise AssertionError("nothing is made here")

    def note(self, message):
        self.told.append(message)

    def tokens_made(self, warnings):
        told = [text for found in warnings.values() for text in found]
        assert all("held-out prompt" in text or "give judge" in text for text in told), told  # of an evaluation this small

    def inputs_read(self, inputs):
        self.told.append("read")

    def stage_reused(self, decision):
        self.told.append(f"{decision.stage} reused {decision.artifact.ref}")

    def stage_started(self, decision, run_dir):
        self.told.append(f"{decision.stage} started: {'; '.join(decision.reasons)}")

    def stage_event(self, event):
        if event["event"] == "start" and event["resumed_step"]:
            self.told.append(f"resumed from {event['resumed_step']}")

    def stage_published(self, outcome):
        self.told.append(f"{outcome.stage} published {outcome.artifact.ref}")

    def stage_failed(self, stage):
        self.told.append(f"{stage} failed")


@pytest.fixture
def bring_up(store, recipe_path, fake_stages):
    """A function: overrides and selection -> run; returns what the view was told."""

    def bring_up(*overrides, **selection):
        view = Recorder()
        run(load_recipe(recipe_path, overrides), store, Selection(**selection), view)
        return view.told

    return bring_up


@pytest.mark.slow
def test_a_run_publishes_all_stages_and_the_next_one_reuses_them(bring_up, store):
    assert bring_up() == [
        "read",
        *(line for stage in STAGES for line in (f"{stage} started: no artifact yet", f"{stage} published {stage}@v1")),
    ]
    assert bring_up() == ["read", *(f"{stage} reused {stage}@v1" for stage in STAGES)]
    assert all(store.verify(ref) == [] for ref in store.refs())


@pytest.mark.slow
def test_bad_lines_that_were_skipped_are_named_in_the_artifacts_that_read_the_data(bring_up, store, recipe_path):
    with (recipe_path.parent / "prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": 3}\n{"prompt": "", "prompt": ""}\n')
    with pytest.raises(DataError):
        bring_up("data.skip_bad=1")
    bring_up("data.skip_bad=2")
    skipped = [json.loads(line) for line in (store.get("ppo").path / "skipped.jsonl").read_text().splitlines()]
    assert [(bad["where"].rpartition("/")[2], bad["field"]) for bad in skipped] == [
        ("prompts.jsonl:9", "prompt"),
        ("prompts.jsonl:10", "prompt"),
    ]
    assert not (store.get("sft").path / "skipped.jsonl").exists()
    assert store.verify("ppo") == []


def test_the_same_records_in_another_format_are_no_reason_to_run_again(bring_up, recipe_path):
    bring_up()
    path = recipe_path.parent / "demonstrations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({"instruction": row["prompt"], "output": row["completion"]}) + "\n" for row in rows))
    assert bring_up() == ["read", *(f"{stage} reused {stage}@v1" for stage in STAGES)]


@pytest.mark.slow
def test_a_changed_setting_reruns_from_there(bring_up):
    bring_up()
    assert bring_up("ppo.kl_coef=0.1") == [
        "read",
        "sft reused sft@v1",
        "rm reused rm@v1",
        "ppo started: ppo.kl_coef changed 0.05 -> 0.1",
        "ppo published ppo@v2",
    ]
    assert "ppo reused ppo@v1" in bring_up()


@pytest.mark.slow
def test_a_stage_that_makes_the_same_again_stops_the_rerun(bring_up, monkeypatch):
    monkeypatch.setenv("FAKE_SFT", "same")
    bring_up()
    assert bring_up("sft.epochs=2") == [
        "read",
        "sft started: sft.epochs changed 1.0 -> 2.0",
        "sft published sft@v2",
        "rm reused rm@v1",
        "ppo reused ppo@v1",
    ]


@pytest.mark.slow
def test_the_manifest_says_from_what_and_how_it_was_made(bring_up, store, recipe_path):
    bring_up()
    manifest = store.get("ppo").manifest
    assert [parent.ref for parent in manifest.parents] == ["sft@v1", "rm@v1"]
    assert set(manifest.data) == {"prompts.train", "prompts.eval"}
    assert manifest.config["ppo"]["kl_coef"] == 0.05
    assert manifest.metrics == {"eval/loss": 0.5}
    assert manifest.counts == {"records": 8}
    assert manifest.facts["architecture"] == "Fake"
    assert manifest.packages["torch"]
    assert manifest.duration_s > 0
    assert manifest.run_id.startswith("ppo-")
    names = {entry.path for entry in manifest.files}
    assert names == {"model/model.safetensors", "samples.jsonl", "result.json", "log.txt", "config.yaml"}


@pytest.mark.slow
def test_the_resolved_recipe_in_an_artifact_makes_the_same_again(bring_up, store, recipe_path):
    bring_up("ppo.kl_coef=0.2")
    again = load_recipe(store.get("ppo").path / "config.yaml")
    assert again.model_copy(update={"store": "store"}) == load_recipe(recipe_path, ["ppo.kl_coef=0.2"])


def test_a_stage_is_given_the_models_and_data_of_the_contract(bring_up, store, recipe_path):
    bring_up()
    spec = json.loads(next(store.root.glob("runs/ppo-*/spec.json")).read_text())
    assert spec["models"] == {"sft": str(store.get("sft").model_path), "rm": str(store.get("rm").model_path)}
    assert spec["data"]["prompts"]["train"]["path"] == str(recipe_path.parent / "prompts.jsonl")
    spec = json.loads(next(store.root.glob("runs/sft-*/spec.json")).read_text())
    assert spec["models"] == {"base": str(recipe_path.parent / "base")}


@pytest.mark.slow
def test_a_failing_stage_publishes_nothing_and_tells_why(bring_up, store, monkeypatch):
    monkeypatch.setenv("FAKE_RM", "fail:3")
    with pytest.raises(StageFailed, match=r"^rm: the loss is nan$") as caught:
        bring_up()
    assert caught.value.exit_code == 3
    assert caught.value.last_lines[-1] == "line 39"
    assert store.refs() == ["sft@v1"]
    assert list((store.root / ".staging").iterdir()) == []
    monkeypatch.setenv("FAKE_RM", "ok")
    assert bring_up()[1] == "sft reused sft@v1"


@pytest.mark.parametrize("behaviour", ["crash", "die", "no-result", "no-model"])
def test_a_stage_that_breaks_its_contract_publishes_nothing(bring_up, store, monkeypatch, behaviour):
    monkeypatch.setenv("FAKE_SFT", behaviour)
    with pytest.raises(StageFailed) as caught:
        bring_up(run=("sft",))
    assert caught.value.exit_code == 1
    assert store.refs() == []


def test_an_unfinished_run_goes_on_and_leaves_no_checkpoints_at_its_end(bring_up, store, monkeypatch):
    monkeypatch.setenv("FAKE_SFT", "fail:1")
    with pytest.raises(StageFailed):
        bring_up(run=("sft",))
    (run_dir,) = store.root.glob("runs/sft-*")
    (run_dir / "checkpoints" / "step").write_text("1")
    monkeypatch.setenv("FAKE_SFT", "ok")
    assert "resumed from 1" in bring_up(run=("sft",))
    assert not (run_dir / "checkpoints").exists()
    log = (store.get("sft").path / "log.txt").read_text()
    assert "from step 0" in log
    assert "from step 1" in log


def test_other_settings_do_not_go_on_from_an_unfinished_run(bring_up, store, monkeypatch):
    monkeypatch.setenv("FAKE_SFT", "fail:1")
    with pytest.raises(StageFailed):
        bring_up(run=("sft",))
    monkeypatch.setenv("FAKE_SFT", "ok")
    for step in store.root.glob("runs/sft-*/checkpoints"):
        (step / "step").write_text("1")
    assert not any("resumed" in line for line in bring_up("sft.epochs=2", run=("sft",)))


def test_force_makes_a_new_version_from_the_start(bring_up, store, monkeypatch):
    bring_up(run=("sft",))
    (run_dir,) = store.root.glob("runs/sft-*")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step").write_text("1")
    told = bring_up(run=("sft",), force=True)
    assert told == ["read", "sft started: --force was given", "sft published sft@v2"]
    assert store.get("sft@v1").content_id == store.get("sft@v2").content_id


def test_checkpoints_of_a_run_that_was_killed_after_publishing_are_removed(bring_up, store):
    bring_up(run=("sft",))
    (run_dir,) = store.root.glob("runs/sft-*")
    (run_dir / "checkpoints").mkdir()
    bring_up(run=("sft",))
    assert not (run_dir / "checkpoints").exists()


def test_a_damaged_parent_is_refused_and_named(bring_up, store):
    bring_up(run=("sft",))
    path = store.get("sft").model_path / "model.safetensors"
    path.parent.chmod(0o755)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"sft@v1 is damaged.*model\.safetensors") as caught:
        bring_up(run=("sft", "rm"))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("verified", [False, True])
def test_whoever_reuses_what_is_removed_meanwhile_is_told_to_start_again(bring_up, store, recipe_path, monkeypatch, verified):
    """Another process forgets a record and collects what is withdrawn, before its bytes are verified or just after that."""
    bring_up()

    def withdraw_and_collect():
        sft = store.get("sft@v1")
        withdraw(store.root, {ref: Withdrawal(seal=store.get(ref).seal, reason="it learnt", at="now") for ref in store.refs()})
        assert sft.ref in [each.ref for each in collect(store, 1).artifacts]

    class Beside(Recorder):
        def stage_reused(self, decision):
            super().stage_reused(decision)
            if decision.stage == "rm" and not verified:
                withdraw_and_collect()

    with (
        monkeypatch.context() as patch,
        pytest.raises(StoreError, match=r"^ppo: sft@v1 and rm@v1 .* removed meanwhile; .*; start the same command again") as refusal,
    ):
        if verified:
            patch.setattr(run_module, "make_spec", lambda *given: [withdraw_and_collect(), make_spec(*given)][1])
        run(load_recipe(recipe_path, ["ppo.kl_coef=0.1"]), store, Selection(), Beside())
    assert refusal.value.exit_code == EXIT_MISSING
    assert sum("published" in told for told in bring_up("ppo.kl_coef=0.1")) == len(STAGES)


def test_a_store_that_cannot_be_written_is_told_in_one_line(recipe_path, fake_stages):
    root = Path("/sys/rlhf-store")  # not even root may write here
    with pytest.raises(ResourceError, match=r"^/sys/rlhf-store.*needed; ") as caught:
        run(load_recipe(recipe_path), Store(root), Selection(), Recorder())
    assert caught.value.exit_code == 5


def test_a_secret_that_a_library_prints_stays_out_of_the_artifact(bring_up, store, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-4711-canary")
    monkeypatch.setenv("FAKE_SFT", "print-secret")
    bring_up(run=("sft",))
    published = b"".join(path.read_bytes() for path in store.get("sft").path.rglob("*") if path.is_file())
    assert b"token: ***" in published
    assert b"canary" not in published


def test_the_next_stage_trains_on_the_merged_model_where_there_is_one(bring_up, store, publish):
    artifact = publish(store, "sft", {"model/adapter.safetensors": b"a", "merged/model.safetensors": b"m"})
    assert artifact.opened_path == artifact.path / "merged"


def test_the_store_may_move(bring_up, store, tmp_path, recipe_path):
    bring_up()
    moved = shutil.move(store.root, tmp_path / "elsewhere")
    view = Recorder()
    run(load_recipe(recipe_path), Store(tmp_path / "elsewhere"), Selection(), view)
    assert view.told == ["read", *(f"{stage} reused {stage}@v1" for stage in STAGES)], moved


@pytest.mark.slow
def test_with_a_pretrain_block_sft_starts_from_what_that_stage_leaves(bring_up, store, pretraining):
    told = bring_up(*pretraining, "evaluate={}")
    assert [line.split()[0] for line in told if "published" in line] == ["pretrain", *STAGES, "evaluate"]
    kinds = {"pretrain", *STAGES, "evaluation"}
    assert {path.name for path in (store.root / "artifacts").iterdir() if path.is_dir()} == kinds
    specs = {path.parent.name.split("-")[0]: json.loads(path.read_text()) for path in store.root.glob("runs/*/spec.json")}
    assert specs["sft"]["models"] == {"base": str(store.get("pretrain").model_path)}
    assert specs["pretrain"]["data"].keys() == {"texts"}
    assert [parent.ref for parent in store.lineage("ppo")] == ["sft@v1", "rm@v1", "pretrain@v1"]
    assert bring_up(*pretraining, run=("sft",)) == ["read", "pretrain reused pretrain@v1", "sft reused sft@v1"]
    assert "sft started: pretrain changed pretrain@v1 -> none" in bring_up()


def write_judge(recipe_path, body):
    (recipe_path.parent / "myjudge.py").write_text(f"def judge(prompt, response, finished):\n    {body}\n")


@pytest.mark.slow
def test_a_judge_beside_the_recipe_is_asked_about_a_record_of_each_kind_before_anything_trains(bring_up, recipe_path, tmp_path):
    write_judge(recipe_path, f"open({str(tmp_path / 'asked')!r}, 'a').write(repr((prompt, response)) + chr(10)); return 0.5")
    bring_up("judge=myjudge:judge", run=("rm", "sft"))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split(",")[0] for line in asked] == ["('question 0'"] and "'answer 0'" in asked[0]
    bring_up("judge=myjudge:judge")
    assert len((tmp_path / "asked").read_text().splitlines()) == 2  # of PPO's prompts: SFT is reused
    bring_up("judge=myjudge:judge")
    assert len((tmp_path / "asked").read_text().splitlines()) == 2  # nothing runs


@pytest.mark.slow
def test_a_judge_of_a_stage_that_is_reused_need_not_answer(bring_up):
    with ChatServer(lambda _: "OK").serving() as server:
        judged = ["sft.publish=best", "sft.publish_by=judge", "sft.judge.llm.model=big", f"sft.judge.llm.url={server.url}"]
        bring_up(*judged, run=("sft",))
    assert bring_up(*judged, run=("sft", "rm"))[-1] == "rm published rm@v1"
    assert len(server.asked) == 1


@pytest.mark.slow
def test_a_judge_that_fails_ends_a_run_before_the_first_stage_even_one_that_does_not_ask_it(bring_up, recipe_path, store):
    bring_up(run=("sft",))
    write_judge(recipe_path, "return {'score': 'good'}")
    for overrides in (["judge=myjudge:judge"], ["judge=myjudge:judge", "sft.eval_samples=0"]):
        with pytest.raises(ConfigError, match=r"^--set: judge: myjudge:judge returned \{'score': 'good'\}, needed finite figures"):
            bring_up(*overrides)
    recipe_path.write_text(recipe_path.read_text() + "judge: myjudge:judge\n")
    with pytest.raises(ConfigError, match=rf"^{recipe_path}:9: judge: myjudge:judge returned"):
        bring_up()
    assert store.refs() == ["sft@v1"]
    with pytest.raises(ConfigError, match=r"found no module nowhere installed, on PYTHONPATH or in .*project; put it there"):
        bring_up("judge=nowhere:judge")
    assert "rm published rm@v1" in bring_up("judge=nowhere:judge", "sft.eval_samples=0", run=("sft", "rm"))  # neither asks it


@pytest.fixture
def stopped(bring_up, store, monkeypatch):
    """The directory of a stopped run of SFT; bring_up goes on with it."""
    monkeypatch.setenv("FAKE_SFT", "fail:1")
    with pytest.raises(StageFailed):
        bring_up(run=("sft",))
    monkeypatch.setenv("FAKE_SFT", "ok")
    (run_dir,) = store.root.glob("runs/sft-*")
    return run_dir


@pytest.mark.parametrize("name", ["", "lock", "spec.json", "log.txt", "events.jsonl", "checkpoints", "checkpoints/metrics.jsonl"])
def test_f7_a_run_writes_and_removes_nothing_through_a_link_in_its_directory(bring_up, store, stopped, tmp_path, name):
    path, foreign = stopped / name, tmp_path / "foreign"
    if path.exists():
        path.rename(foreign)
    else:
        foreign.write_text("precious")
    path.symlink_to(foreign)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in [foreign, *foreign.rglob("*")]}
    for force in (False, True):
        with pytest.raises(ResourceError, match="a link, which is not followed") as refusal:
            bring_up(run=("sft",), force=force)
        assert str(path) in refusal.value.message
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in [foreign, *foreign.rglob("*")]} == before
    assert store.refs() == []


def test_f7_checkpoints_of_a_finished_run_are_not_forgotten_through_a_link(bring_up, store, tmp_path):
    bring_up(run=("sft",))
    (run_dir,) = store.root.glob("runs/sft-*")
    (tmp_path / "foreign" / "checkpoints").mkdir(parents=True)
    shutil.rmtree(run_dir)
    run_dir.symlink_to(tmp_path / "foreign")
    with pytest.raises(ResourceError, match="a link, which is not followed"):
        bring_up(run=("sft",))
    assert (tmp_path / "foreign" / "checkpoints").exists()


def test_f12_a_place_where_the_last_stage_cannot_publish_is_told_before_the_first_trains(bring_up, store, tmp_path):
    (store.root / "artifacts").mkdir(parents=True)
    (store.root / "artifacts" / "ppo").symlink_to(tmp_path)
    with pytest.raises(ResourceError, match="artifacts/ppo: a link, which is not followed"):
        bring_up()
    (store.root / "artifacts" / "ppo").unlink()
    (store.root / "artifacts" / "ppo").write_text("a file")
    with pytest.raises(ResourceError, match="artifacts/ppo: no directory"):
        bring_up()
    assert not list(store.root.glob("runs/*/spec.json"))


@pytest.mark.slow
def test_a_tracker_follows_a_stage_and_is_no_reason_to_run_again(bring_up, store):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    bring_up("tracking=[tensorboard]", run=("sft",))
    (run_dir,) = (store.root / "tracking" / "tensorboard" / "mine").iterdir()
    assert run_dir.name.startswith("sft-")
    events = event_accumulator.EventAccumulator(str(run_dir))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(2, 0.5)]  # a figure of the result
    assert bring_up(run=("sft",)) == ["read", "sft reused sft@v1"]


def test_threads_for_which_there_are_no_cores_are_told_before_the_first_stage_starts(bring_up):
    told = bring_up("hardware.threads=1024", "hardware.device=cpu", run=("sft",))
    assert told[1].startswith("--set: hardware.threads: found 1,024, needed this machine's") and told[2].startswith("sft started")


@pytest.mark.slow
def test_a_tracker_that_fails_or_is_not_there_is_told_once_and_stops_nothing(bring_up, store, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    told = bring_up("tracking=[mlflow, trackio]", run=("sft",))
    missing = "--set: tracking: trackio is not installed, so it gets no rows; pip install 'rlhf[trackio]'"
    assert told[:3] == ["read", missing, "sft started: no artifact yet"]
    assert told[-1] == "sft published sft@v1"
    (failed,) = [
        note for note in read_told(store.root / "runs" / store.get("sft").manifest.run_id / "events.jsonl").notes if "mlflow" in note
    ]
    assert failed.startswith("tracking: mlflow failed (") and "gets no more rows; the stage goes on" in failed
