"""`rlhf sample`: an artifact of answers with its lineage, reused, told apart by policy, prompts and settings. With a fake stage."""

import json
import shutil

import pytest

from data.answers import iter_answer_sets
from stages.spec import EXIT_MISSING, EXIT_USAGE, DataSource

pytestmark = pytest.mark.slow  # a process each


@pytest.fixture
def rlhf(rlhf_here, finished_run, fake_stages, tmp_path):
    shutil.copytree(finished_run.store, tmp_path / "store", symlinks=True)
    return rlhf_here


def listed(rlhf):
    return [row["ref"] for row in json.loads(rlhf("ls", "answers", "--json").stdout)]


def test_answers_are_an_artifact_with_its_policies_as_parents_and_are_reused(rlhf, tmp_path):
    told = rlhf("sample", "ppo", "--k", 2, "--with", "sft@v1")
    assert told.returncode == 0, told.stderr
    assert "sample: published answers@v1" in told.stdout and "rlhf rank answers@v1" in told.stdout
    manifest = json.loads((tmp_path / "store/artifacts/answers/v0001/manifest.json").read_text())
    assert [parent["ref"] for parent in manifest["parents"]] == ["ppo@v1", "sft@v1"]
    assert manifest["config"]["sample"]["answers"] == 2 and manifest["config"]["sample"]["temperature"] == 1.0
    source = DataSource.model_validate({"path": str(tmp_path / "store/artifacts/answers/v0001/answers.jsonl")})
    assert next(iter_answer_sets(source)).models == ("ppo@v1", "sft@v1")
    assert "reused answers@v1" in rlhf("sample", "ppo", "--k", 2, "--with", "sft@v1", "--set", "sample.batch_size=3").stdout
    assert "because sample.temperature changed 1.0 -> 0.5" in rlhf("sample", "ppo", "--k", 2, "--with", "sft", "--temperature", 0.5).stdout
    assert "because sft@v1 changed sft@v1 -> none" in rlhf("sample", "ppo", "--k", 2, "--set", "sample.temperature=0.5").stdout
    other = rlhf("sample", "sft", "--k", 2, "--with", "ppo@v1").stdout  # answers most where the shares are not even
    assert "published answers@v4" in other
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "mine?"}) + "\n")
    assert "data.prompts changed" in rlhf("sample", "ppo", "--k", 2, "--prompts", tmp_path / "own.jsonl").stdout
    assert listed(rlhf) == [f"answers@v{number}" for number in range(1, 6)]
    assert rlhf("verify").returncode == 0
    assert "ppo@v1" in rlhf("lineage", "answers@v1").stdout


def test_what_cannot_answer_or_be_found_is_refused_before_anything_runs(rlhf):
    assert "rm@v1 is a reward model" in rlhf("sample", "rm").stderr
    again = rlhf("sample", "ppo", "--with", "ppo@v1")
    assert again.returncode == EXIT_USAGE and "found ppo@v1 twice" in again.stderr
    assert rlhf("sample", "ppo@v7").returncode == EXIT_MISSING
    assert "--prompts" in (missing := rlhf("sample", "ppo", "--prompts", "held_out")).stderr, missing.stderr
    assert missing.returncode == EXIT_USAGE and missing.stderr.endswith("did you mean held-out?\n")
    assert listed(rlhf) == []
