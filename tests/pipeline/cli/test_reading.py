"""The commands that look at what a stage made."""

import errno
import json
import os
import re

import pytest
from typer.testing import CliRunner

from data.answers import AnswerSet
from data.schema import Message
from pipeline.cli import app
from pipeline.errors import StoreError
from pipeline.ranking.journal import Journal, Judgement
from pipeline.store.manifest import Parent
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages.result import Interval
from stages.spec import EXIT_RESOURCE
from tests.pipeline.cli.answer_rows import make_rows, write_rows
from tests.pipeline.report.evaluations import publish_line, simulate


def make_line(publish, store, rate=1e-5, kl_coef=0.05, score=0.5, low=0.4):
    """SFT, a reward model and PPO, each made from those before it."""

    def name(artifact):
        return Parent(ref=artifact.ref, content_id=artifact.content_id)

    sft = publish(
        store,
        "sft",
        {"model/config.json": b"{}", "model/weights": str(rate).encode()},
        config={"seed": 1, "base_model": "sha256:" + "b" * 64, "sft": {"learning_rate": rate}},
        data={"demonstrations.train": "sha256:" + "d" * 64},
        facts={"base_model": "models/base"},
    )
    rm = publish(store, "rm", {"model/config.json": b"{}", "model/weights": sft.content_id.encode()}, parents=[name(sft)])
    interval = Interval(low=low, high=score + score - low, n=20)
    return publish(
        store,
        "ppo",
        {"model/config.json": b"{}", "model/weights": f"{kl_coef} {sft.content_id}".encode()},
        config={"seed": 1, "ppo": {"kl_coef": kl_coef}},
        parents=[name(sft), name(rm)],
        metrics={"eval/sampled/score": score, "time/update_s": score},
        intervals={"eval/sampled/score": interval},
    )


def test_lineage_is_a_tree_of_artifacts_data_and_base_model_in_which_each_has_its_branches_once(rlhf_here, publish, store):
    ppo = make_line(publish, store)
    shown = rlhf_here("lineage", "ppo")
    assert shown.returncode == 0, shown.stderr
    begun = ["ppo@v1", "├─ sft@v1", "│  ├─ demonstrations.train", "│  └─ base model", "└─ rm@v1", "   └─ sft@v1"]
    assert all(line.startswith(f"{begin}  ") for line, begin in zip(shown.stdout.splitlines(), begun, strict=True))
    assert "bbbbbbbbbbbb  models/base" in shown.stdout
    assert shown.stdout.splitlines()[-1].endswith("(above)")
    tree = json.loads(rlhf_here("lineage", "ppo", "--json").stdout)
    assert tree["content_id"] == ppo.content_id
    assert tree["parents"][0]["base_model"] == {"name": "models/base", "identity": "sha256:" + "b" * 64}
    assert tree["parents"][1]["parents"] == [{"ref": "sft@v1", "content_id": tree["parents"][0]["content_id"], "above": True}]


def test_an_ancestor_that_is_gone_is_told_in_its_place(rlhf_here, publish, store):
    make_line(publish, store)
    (store.root / "artifacts" / "rm").rename(store.root / "gone")
    shown = rlhf_here("lineage", "ppo")
    assert shown.returncode == 3
    assert "└─ rm@v1" in shown.stdout and "damaged: no artifact rm@v1" in shown.stdout
    assert "demonstrations.train" in shown.stdout


def test_diff_tells_what_changed_where_it_was_made_and_what_that_did(rlhf_here, publish, store):
    make_line(publish, store)
    make_line(publish, store, rate=2e-5, kl_coef=0.1, score=0.75, low=0.7)
    result = rlhf_here("diff", "ppo@v1", "ppo@v2")
    assert result.returncode == 0, result.stderr
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "setting sft.learning_rate changed 1e-05 -> 2e-05" in shown
    assert "setting ppo.kl_coef changed 0.05 -> 0.1" in shown
    assert "sampled/score 0.5 (0.4 to 0.6) 0.75 (0.7 to 0.8) +0.25 apart" in shown
    assert "time/update_s" not in result.stdout  # how long it took is no figure of what it made
    data = json.loads(rlhf_here("diff", "ppo@v1", "ppo@v2", "--json").stdout)
    assert [found["kind"] for found in data["differences"]] == ["sft", "rm", "ppo"]
    (figure,) = data["differences"][-1]["figures"]
    assert (figure["difference"], figure["new_interval"]) == (0.25, {"low": 0.7, "high": 0.8, "n": 20})


def test_diff_of_an_artifact_with_itself_says_that_nothing_differs(rlhf_here, publish, store):
    make_line(publish, store)
    shown = rlhf_here("diff", "ppo", "ppo@v1").stdout
    assert "ppo@v1, the same weights" in shown
    assert "held-out figures: the same" in shown
    assert "the same: sft, rm" in shown


def test_diff_of_two_kinds_compares_what_both_have(rlhf_here, publish, store):
    make_line(publish, store)
    shown = rlhf_here("diff", "sft", "ppo").stdout
    assert "of two kinds" in shown
    assert "made from and with the same" not in shown  # PPO was made from SFT, with other settings
    assert "kl_coef" not in shown and "learning_rate" not in shown
    assert "held-out figures: none" in shown


def test_diff_without_an_ancestor_compares_the_artifacts_alone_and_says_so(rlhf_here, publish, store):
    make_line(publish, store)
    make_line(publish, store, kl_coef=0.1)
    (store.root / "artifacts" / "sft").rename(store.root / "gone")
    result = rlhf_here("diff", "ppo@v1", "ppo@v2")
    assert result.returncode == 0
    assert "the ancestors of ppo@v1 are not compared" in result.stdout
    assert "ppo.kl_coef changed 0.05 -> 0.1" in result.stdout


def test_a_list_shows_a_held_out_figure_with_its_interval_and_how_many_prompts_it_stands_on(rlhf_here, publish, store):
    make_line(publish, store)
    assert "score 0.5 (0.4 to 0.6), n 20" in rlhf_here("ls").stdout
    assert json.loads(rlhf_here("ls", "ppo", "--json").stdout)[0]["intervals"] == {"eval/sampled/score": {"low": 0.4, "high": 0.6, "n": 20}}


def test_in_a_pipe_each_artifact_is_one_line_however_long_its_figures_are(rlhf_here, publish, store):
    for _ in range(2):
        metrics = {
            f"eval/{way}/{name}": -1.234e-100 for way in ("sampled", "greedy", "ema_sampled") for name in ("score", "kl", "judge_score")
        }
        intervals = {name: Interval(low=-1.23e-100, high=1.23e-100, n=10**9) for name in metrics}
        publish(store, "ppo", metrics=metrics, intervals=intervals)
    heading, *lines = rlhf_here("ls").stdout.splitlines()
    assert heading.split() == ["artifact", "content", "made", "(UTC)", "size", "from", "figures"]
    assert [line.split()[0] for line in lines] == ["ppo@v1", "ppo@v2"]
    assert all(len(line) > 200 and line.index("score") == heading.index("figures") for line in lines)


def test_a_list_of_a_kind_that_there_is_none_of_names_the_kind(rlhf_here, publish, store):
    publish(store, "sft")
    assert rlhf_here("ls", "ppo").stdout == f"no artifacts of kind ppo in {store.root}; `rlhf ls` lists all\n"


def test_show_is_a_page_of_verdict_figures_curves_answers_and_lineage(rlhf_here, publish, store):
    sft = publish(store, "sft", metrics={"eval/sampled/judge_score": 40.0, "eval/loss": 0.5})
    curve = [{"step": step, "objective/kl": step / 10} for step in range(50)]
    publish(
        store,
        "ppo",
        {"model/config.json": b"{}", "samples.jsonl": write_rows(make_rows()), "metrics.jsonl": write_rows(curve)},
        parents=[Parent(ref=sft.ref, content_id=sft.content_id)],
        metrics={
            "eval/start/score": -0.25,
            "eval/sampled/score": 0.5,
            "eval/sampled/kl": 4.0,
            "eval/greedy/judge_score": 90.0,
            "eval/sampled/judge_score": 83.0,
        },
        intervals={"eval/sampled/score": Interval(low=0.4, high=0.6, n=20)},
        counts={"held_out_prompts": 20},
    )
    result = rlhf_here("show", "ppo")
    assert result.returncode == 0, result.stderr
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(line.startswith("PPO") for line in shown)  # the verdict
    assert "score (sampled) 0.5 0.4 to 0.6 20 +0.75 from the start" in shown
    assert "judge (sampled) 83 +43 from sft@v1" in shown
    assert any(re.fullmatch("KL ▁+▂+▃+▄+▅+▆+▇+█+ 0 -> 4.9", line) for line in shown)
    assert "worst by judge, greedy, score 7, judge 0, KL 1.5" in shown
    assert "best by judge, sampled, score 0, judge 70, KL 1.5" in shown
    assert any(line.startswith("└─ sft@v1") for line in shown)
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout


def test_show_in_json_holds_the_manifest_and_the_page(rlhf_here, publish, store):
    make_line(publish, store)
    data = json.loads(rlhf_here("show", "ppo", "--json").stdout)
    assert {"manifest", "lineage", "samples", "verdicts", "figures", "curves", "tree"} <= data.keys()
    assert data["figures"][0] == {
        "name": "eval/sampled/score",
        "label": "score (sampled)",
        "value": 0.5,
        "interval": {"low": 0.4, "high": 0.6, "n": 20},
        "before": None,
        "before_of": None,
    }


def test_show_all_prints_the_whole_manifest(rlhf_here, publish, store):
    publish(store, "sft", counts={"demonstrations": 7}, facts={"pad_token_id": 3}, metrics={"time/total": 2.0})
    shown = rlhf_here("show", "sft", "--all").stdout
    assert all(text in shown for text in ("Counts", "demonstrations", "Hand-off facts", "pad_token_id", "time/total"))


@pytest.mark.parametrize("metrics", [{}, {"eval/loss": float("nan")}, {"eval/loss": 0.25}])
def test_show_of_an_artifact_with_little_in_it_is_a_page_all_the_same(rlhf_here, publish, store, metrics):
    publish(store, "sft", {"model/config.json": b"{}", "metrics.jsonl": b"no json\n[1]\n", "samples.jsonl": b"torn"}, metrics=metrics)
    for kind in ("sft", "else"):
        publish(store, kind)
        result = rlhf_here("show", f"{kind}@v1")
        assert result.returncode == 0, result.stderr
        assert f"{kind}@v1" in result.stdout


def test_show_tells_of_an_ancestor_that_is_gone_and_shows_the_rest(rlhf_here, publish, store):
    make_line(publish, store)
    (store.root / "artifacts" / "rm").rename(store.root / "gone")
    result = rlhf_here("show", "ppo")
    assert "rm@v1" in result.stdout and "score (sampled)" in result.stdout


@pytest.mark.parametrize("ref", ["evaluation", "ppo"])
def test_an_evaluation_and_what_was_evaluated_show_the_verdict_and_each_model_with_intervals(rlhf_here, evaluated, ref):
    shown = rlhf_here("show", ref)
    assert shown.returncode == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert any(line.startswith("PPO is better than SFT: PPO wins") and "24 held-out prompts" in line for line in lines)
    assert "Evaluated by evaluation@v1, sampled" in lines
    (sft,) = [line for line in lines if line.startswith("sft ") and " to " in line]
    assert sft.count(" to ") >= 2  # score and judge
    assert any(line.startswith("model score judge KL tokens") for line in lines)


def test_samples_of_an_evaluation_are_chosen_by_model_and_way(rlhf_here, evaluated):
    found = json.loads(rlhf_here("samples", "evaluation", "--model", "sft", "--way", "sampled", "--best", "-n", "3", "--json").stdout)
    assert {(row["model"], row["way"]) for row in found["samples"]} == {("sft", "sampled")}
    assert found["by"] == "judge_score" and found["matching"] < found["total"]
    assert "needed one of: base, sft" in rlhf_here("samples", "evaluation", "--model", "rm").stderr


def test_the_lineage_of_an_evaluation_holds_all_that_it_compared(rlhf_here, evaluated):
    shown = rlhf_here("lineage", "evaluation").stdout
    assert [ref in shown for ref in ("evaluation@v1", "ppo@v1", "rm@v1", "sft@v1")] == [True] * 4


def test_an_artifact_that_is_withdrawn_says_so_wherever_it_is_shown(rlhf_here, evaluated, store):
    ppo = store.get("ppo")
    withdraw(store.root, {"ppo@v1": Withdrawal(seal=ppo.seal, reason="it learnt from prompts.train", at=ppo.manifest.created_utc)})
    for command in (("show", "ppo"), ("show", "evaluation"), ("report", "ppo")):
        shown = rlhf_here(*command)
        assert shown.returncode == 0, shown.stderr
        told = "ppo@v1 is withdrawn: it learnt" if command[1] == "evaluation" else "Withdrawn: it learnt"
        assert told in shown.stdout, command
        assert shown.stdout.count("it learnt from prompts.train") == 1, command
    assert next((store.root / "reports").iterdir()).read_text().count("it learnt from prompts.train") == 1


def test_an_evaluation_with_figures_that_are_none_is_told_and_the_rest_reported(rlhf_here, publish, store):
    evaluation, _ = simulate(num_prompts=8, samples=1)
    content = re.sub(r'("kl_k1":\{"value":)[^,]+', r"\1NaN", evaluation.model_dump_json())
    parents = [Parent(ref=parent.ref, content_id=parent.content_id) for parent in publish_line(store, publish)]
    publish(store, "evaluation", {"evaluation.json": content.encode()}, parents=parents)
    told = rlhf_here("report", "ppo")
    assert told.returncode == 0, told.stderr
    assert "kl_k1.value: found nan; needed a finite number" in next((store.root / "reports").iterdir()).read_text()


def test_what_a_damaged_version_learnt_from_is_not_passed_over(rlhf_here, evaluated, store):
    file = next(path for path in store.get("sft").path.iterdir() if path.name != "manifest.json" and path.is_file())
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"\n")
    for command in ("trace", "forget"):
        told = rlhf_here(command, "where is my order?")
        assert told.returncode == 3 and "sft@v1: damaged, so it is not known" in told.stderr, command
    assert rlhf_here("trace", "where?", "--store", store.root / "nowhere").returncode == 4


def test_a_damaged_evaluation_is_told_beside_what_it_may_have_evaluated(rlhf_here, evaluated, store):
    samples = store.get("evaluation").path / "samples.jsonl"
    samples.parent.chmod(0o755)
    samples.unlink()
    assert "evaluation@v1 is damaged" in rlhf_here("show", "ppo").stdout


@pytest.mark.parametrize("arguments", [["gc"], ["gc", "--remove"], ["forget", "x"], ["trace", "x"], ["doctor"], ["doctor", "--mend"]])
def test_a_store_that_is_mistyped_is_told_and_not_made(arguments, tmp_path):
    done = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path / "typo")])
    assert isinstance(done.exception, StoreError) and done.exception.exit_code == 4
    assert "no such directory; a store is needed" in str(done.exception) and not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("command", "refused", "named"),
    [
        (["report"], "pipeline.report.page.write.replace_durably", "give --output PATH"),
        (["report", "-o", "page.html"], "pipeline.report.page.write.replace_durably", "give another --output PATH"),
        (["rank", "answers.jsonl", "--terminal", "--journal", "no/said.jsonl"], "", "give --journal FILE"),
        (["export", "sft", "there"], "pipeline.export.make_directories", "give another directory"),
        (["rankings", "answers.jsonl", "-o", "no/ranked.jsonl"], "", "give another --output"),
    ],
)
def test_where_a_place_cannot_be_written_the_option_that_names_another_is_told(
    rlhf_here, publish, store, monkeypatch, tmp_path, command, refused, named
):
    """A store that is only read is no reason to choose another one."""

    def refuse(*given, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    publish(store, "sft")
    (tmp_path / "answers.jsonl").write_text('{"prompt": "q", "completions": ["a", "b"]}\n')
    said = {"id": f"{1:032x}", "item": AnswerSet((Message("user", "q"),), ("a", "b")).id, "annotator": "ann", "order": (0, 1)}
    Journal(tmp_path / "answers.rankings.jsonl").add(Judgement(**said, outcome="ranked", ranks=(1, 2), time=0.0))
    monkeypatch.setattr("pipeline.cli.ranking._require_terminal", lambda annotators: None)
    if refused:
        monkeypatch.setattr(refused, refuse)
    told = rlhf_here(*command)
    assert told.returncode == EXIT_RESOURCE and named in told.stderr and "another store" not in told.stderr, told
