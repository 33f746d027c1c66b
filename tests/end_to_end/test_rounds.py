"""`make rounds` in small: real stages, the real page, a simulated annotator; from no ranking to a second reward model and policy."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # half a minute

TINY = (
    "hardware.processes=1",
    "sft.epochs=0.1",
    "sft.eval_samples=4",
    "sample.answers=3",
    "sample.choose=deltaucb",
    "sample.candidates=4",
    "sample.random_share=0.5",
    "rm.epochs=1",
    "rm.batch_size=4",
    "rm.micro_batch_size=4",
    "ppo.iterations=1",
    "ppo.eval_samples=8",
    "ppo.rollout_batch_size=16",
    "ppo.max_response_tokens=16",
)


def test_the_demo_goes_round_by_itself_and_the_second_call_finds_all_of_it_again(tmp_path, warm_start):
    store = tmp_path / "store"

    def go(rounds):
        command = [sys.executable, "-P", "-m", "pipeline.cli.demo_rounds", "--store", str(store)]
        command += ["--rounds", str(rounds), "--rankings", "24", *(word for line in TINY for word in ("--set", line))]
        done = subprocess.run(command, env=warm_start(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = go(1)
    assert "round 1: a simulated annotator ranked 26 times on the page" in told and "round 1 " in told
    assert "there is no reward model yet that could choose; this round's answers are drawn at random" in told
    told = go(2)
    assert "sft: runs" not in told and "answers@v1" not in told.partition("round 2: answers")[0].replace("reused answers@v1", "")
    assert "rm: runs, because data.comparisons changed (rankings@v2 added)" in told
    manifest = json.loads((store / "artifacts/rm/v0002/manifest.json").read_text())
    assert [parent["ref"] for parent in manifest["parents"]] == ["sft@v1", "rankings@v1", "rankings@v2"]
    assert {"eval/accuracy_source_rankings@v1", "eval/accuracy_source_rankings@v2"} <= manifest["metrics"].keys()
    # The scale of scores is kept: demonstrations have mean 0 and standard deviation 1 in each round.
    first = json.loads((store / "artifacts/rm/v0001/manifest.json").read_text())
    assert all(each["facts"]["score_scale"] != 1.0 for each in (first, manifest))
    table = told[told.index("rankings of") :]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["none", "round", "round"] and "before, on the newest" in table
    assert "prefers the answer without  rm@v1" in table and "rm@v2" in table.partition("prefers the answer without")[2]
    # The second round's answers were chosen by the first reward model, half of them were not; who ranked could not tell.
    answers = [json.loads(line) for line in (store / "artifacts/answers/v0002/answers.jsonl").read_text().splitlines()]
    arms = [row["arm"] for row in answers]
    assert arms.count("random") == 12 == arms.count("chosen") and len({len(row["completions"]) for row in answers}) == 1
    lineage = json.loads((store / "artifacts/answers/v0002/manifest.json").read_text())
    assert [parent["ref"] for parent in lineage["parents"]] == ["ppo@v1", "rm@v1", "rankings@v1"]
    assert "rankings@v2  chosen" in table and "rankings@v2  random" in table and "rankings@v2: " in table
    page = (store / "reports/rounds-demo.html").read_text()
    assert "<script" not in page and "Old and new reward model on held-out lists" in page and "rankings@v2 (new answers)" in page
    assert "Does choosing pay?" in page and "no chosen ones are there" not in page
    again = go(2)
    assert "runs, because" not in again and "page\n" not in again
    assert again[again.index("rankings of") :].startswith(table[:80])
    assert not (store / "artifacts/answers/v0003").exists()
