"""What a report says: the verdict first, all that was found in its order, and what is missing."""

import json
import math
import os
import time
from dataclasses import replace
from html import unescape

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import ResourceError, StoreError
from pipeline.report.page.answers import Answer, choose_cases
from pipeline.report.page.build import build_page
from pipeline.report.page.evidence import find_newest, gather
from pipeline.report.page.facts import list_notes, list_warnings
from pipeline.report.page.over_optimisation import show_over_optimisation
from pipeline.report.page.write import has_desktop, render, write_report
from pipeline.report.show import page_data
from stages.evaluate.results import Answers, CurvePoint, Evaluation, OverOptimisation
from stages.result import StageWarning
from stages.spec import EXIT_MISSING
from stages.statistics.bootstrap import Estimate
from stages.statistics.frontier import FrontierPoint
from tests.pipeline.report.evaluations import publish_evaluation, publish_line, simulate

FEW = Estimate(1.0, None, None, 4, 4)


def write_failed_run(store, stage, reason, start="2999-01-01T00:00:00.000+00:00", outcome="failed"):
    """Leave a run that ended without an artifact, as an orchestrator does."""
    run = store.root / "runs" / f"{stage}-{'0' * 16}"
    run.mkdir(parents=True, exist_ok=True)
    attempt = {"user": "u", "host": "h", "process": 1, "command": "rlhf run", "start": start, "end": start, "duration_s": 3.0}
    (run / "run.json").write_text(json.dumps({"began": 1, "attempts": [attempt | {"outcome": outcome, "reason": reason, "exit_code": 5}]}))


def page_of(store, ref):
    return build_page(gather(store, store.get(ref)), store.root)


def test_the_parts_stand_in_the_order_in_which_they_are_read(store, evaluated):
    page = page_of(store, "evaluation@v1")
    assert [banner.news for banner in page.banners] == ["good"]
    assert [section.id for section in page.sections] == [
        *("figures", "lineage", "answers", "over-optimisation", "reward-model"),
        *("curves-sft-v1", "curves-rm-v1", "curves-ppo-v1", "cost", "data", "settings", "making"),
    ]
    assert page.missing == []


def test_answers_stand_side_by_side_and_no_prompt_twice(store, evaluated):
    page = page_of(store, "evaluation@v1")
    groups = next(section for section in page.sections if section.id == "answers").groups
    assert [group.title for group in groups] == ["Worst", "Best", "Random", "Largest disagreement of reward model and judge"]
    cases = [case for group in groups for case in group.cases]
    assert all([said.model for said in case.said] == ["The base model", "SFT", "PPO"] for case in cases)
    assert len({case.prompt for case in cases}) == len(cases) == 12


def test_worst_best_and_disagreement_are_of_the_last_model():
    judges = {0: (0.1, 90), 1: (0.2, 10), 2: (3.0, 40), 3: (0.15, 80), 4: (0.12, 85)}
    rows = [
        Answer(model, "sampled", str(i), 0, f"p{i}", f"{model} {i}", True, score, judge if model == "ppo" else 100.0 - judge)
        for model in ("ppo", "sft")
        for i, (score, judge) in judges.items()
    ]
    groups = {group.title: [case.said[-1].response for case in group.cases] for group in choose_cases(rows)}
    assert groups["Largest disagreement of reward model and judge"][0] == "ppo 2"
    assert groups["Worst"][0] == "ppo 1"


def test_the_blind_spots_of_the_reward_model_come_before_all_else(store, evaluated):
    section = next(section for section in page_of(store, "evaluation@v1").sections if section.id == "reward-model")
    assert {text.split(" (")[0] for text in section.warnings} == {"Blind to manners", "Blind to day", "Blind to name"}
    first = section.pictures[0].svg
    assert first.index("blind: ") < first.index("repeat")


def test_the_share_of_what_is_possible_is_said_where_samples_of_sft_show_it():
    points = [CurvePoint(iteration=i, kl=kl, score=Estimate(score, None, None, 4, 4)) for i, kl, score in ((0, 0.0, 0.0), (20, 0.5, 0.6))]
    frontier = (FrontierPoint(1.0, 0.6, 1.1, 5.0),)
    reached = OverOptimisation(curve=tuple(points), frontier=frontier, share_of_frontier=0.624)
    texts = show_over_optimisation(reached, Evaluation(prompts=4)).texts
    assert texts[0] == "PPO reached 62 % of the score possible at this KL."
    points[1] = points[1].model_copy(update={"score": Estimate(0.6, -0.1, 1.3, 4, 4)})
    texts = show_over_optimisation(reached.model_copy(update={"curve": tuple(points)}), Evaluation(prompts=4)).texts
    assert texts[0].endswith("at this KL; its score is not above SFT's by more than chance, so this may be chance too.")
    beyond = OverOptimisation(curve=(points[0], points[1].model_copy(update={"kl": 9.0})), frontier=frontier)
    texts = show_over_optimisation(beyond, Evaluation(prompts=4)).texts
    assert (
        texts[0]
        == "The KL of what PPO published, 9 nats, lies beyond what samples of SFT can show, so no share of what is possible is given."
    )
    bounded = beyond.model_copy(update={"share_at_least": Estimate(0.39, 0.367, 0.417, 4, 4)})
    texts = show_over_optimisation(bounded, Evaluation(prompts=4)).texts
    assert texts[0].endswith("; of the score possible there it reached at least 39 % (37 % to 42 %), by a bound.")


def test_the_share_of_what_is_possible_names_the_iteration_that_was_published():
    curve = [CurvePoint(iteration=i, kl=i / 10, score=Estimate(i / 9, None, None, 4, 4)) for i in (0, 10, 20)]
    found = OverOptimisation(curve=tuple(curve), frontier=(FrontierPoint(1.0, 1.5, 1.1, 5.0),), share_of_frontier=0.624)
    published = Answers(model="ppo", way="sampled", iteration=10, samples_per_prompt=4, response_tokens=FEW, finished=FEW)
    texts = show_over_optimisation(found, Evaluation(prompts=4, answers=(published,))).texts
    assert texts[0] == "What PPO published, iteration 10, reached 62 % of the score possible at this KL."


def test_a_run_that_fooled_the_reward_model_says_so_and_where_to_stop(store, publish, fooled):
    line = publish_line(store, publish)
    publish_evaluation(store, publish, *fooled, line)
    page = page_of(store, "ppo")
    assert page.banners[0].news == "bad"
    assert page.banners[0].sentence.startswith("PPO over-optimised: the judge was highest at iteration 20")
    section = next(section for section in page.sections if section.id == "over-optimisation")
    assert all("stop: iteration 20" in picture.svg for picture in section.pictures)
    assert all("published: iteration 60" in picture.svg for picture in section.pictures)
    assert "by more than chance" in " ".join(section.texts)


def test_the_iteration_that_is_marked_as_published_is_the_best_where_ppo_publishes_that(fooled):
    found, _ = fooled
    answers = [each.model_copy(update={"iteration": 20}) if each.model == "ppo" else each for each in found.answers]
    section = show_over_optimisation(found.over_optimisation, found.model_copy(update={"answers": tuple(answers)}))
    for picture in section.pictures:
        assert "published: iteration 20" in picture.svg and "published: iteration 60" not in picture.svg


def test_a_fitted_peak_outside_of_what_was_seen_is_a_guess(fooled):
    found, _ = fooled
    curve = found.over_optimisation
    first = min(point.kl for point in curve.curve if point.kl > 0.3)
    told = {}
    for peak in (0.5 * first, 1.1 * first):
        fit = replace(curve.judge_fit, peak=math.sqrt(peak), beyond=False)
        told[peak] = " ".join(show_over_optimisation(curve.model_copy(update={"judge_fit": fit}), found).texts)
    assert "before the first kept checkpoint, a guess" in told[0.5 * first] and "within what was seen" in told[1.1 * first]


def test_without_a_judge_the_report_says_that_nothing_can_tell(store, publish):
    line = publish_line(store, publish)
    publish_evaluation(store, publish, *simulate(num_prompts=24, samples=4, judge=False), line)
    page = page_of(store, "evaluation")
    assert page.banners[0].news == "open"
    assert sum("no judge" in line for line in page.missing) == 1
    section = next(section for section in page.sections if section.id == "over-optimisation")
    assert len(section.pictures) == 1
    assert any("nothing can tell where to stop" in text for text in section.texts)


def test_without_an_evaluation_an_artifact_tells_what_it_has_and_what_is_missing(store, publish):
    publish_line(store, publish, answers=[{"way": "sampled", "prompt": f"p{i}", "response": f"r{i}", "score": 0.1 * i} for i in range(20)])
    page = page_of(store, "ppo")
    assert page.banners[0].sentence.startswith("PPO: its score went from −0.2 to 0.9 on 200 held-out prompts")
    assert any(line.startswith("no evaluation stands on ppo@v1") for line in page.missing)
    answers = next(section for section in page.sections if section.id == "answers")
    assert [group.title for group in answers.groups] == ["Worst", "Best", "Random"]
    rankings = next(section for section in page_of(store, "rm").sections if section.id == "answers")
    assert [said.model for said in rankings.groups[0].cases[0].said] == ["Rank 1 by people", "Rank 2 by people", "Rank 3 by people"]


def test_an_evaluation_is_found_by_what_it_was_made_from(store, publish, evaluated):
    assert page_of(store, "sft").banners[0].name == "evaluation@v1"
    other = publish_line(store, publish, metric_rows=[{"step": 1}])[2]
    assert "no evaluation stands on ppo@v2" in " ".join(page_of(store, other.ref).missing)
    assert find_newest(store)[0].ref == "ppo@v2"


def test_no_held_out_data_is_told(store, publish):
    publish_line(store, publish, counts={"prompts": 1, "held_out_prompts": 0}, ppo_metrics={"objective/kl": 0.1})
    page = page_of(store, "ppo")
    assert page.banners[0].sentence.startswith("Nothing was measured of PPO on held-out data")
    assert any(line.startswith("ppo@v1: no held-out data") for line in page.missing)


def test_answers_and_rankings_of_a_round_have_no_curve_and_miss_none(store, publish, evaluated):
    answers = publish(store, "answers", parents=[{"ref": "ppo@v1", "content_id": store.get("ppo@v1").content_id}], counts={"sets": 12})
    parents = [{"ref": answers.ref, "content_id": answers.content_id}]
    rankings = publish(store, "rankings", parents=parents, counts={"sets": 12}, notes=["said of it"])
    for ref in (answers.ref, rankings.ref):
        page = page_of(store, ref)
        assert [line for line in page.missing if ref in line] == [] and "rlhf run" not in page.banners[-1].sentence
        assert not any(section.id.startswith("curves-a") or section.id.startswith("curves-rank") for section in page.sections)
    (told,) = [section for section in page.sections if section.id == "told-rankings-v1"]
    assert told.title == "rankings@v1" and told.more


def test_one_record_says_that_it_shows_nothing(store, publish):
    line = publish_line(store, publish)
    evaluation, rows = simulate(num_prompts=1, samples=4)
    publish_evaluation(store, publish, evaluation, rows, line)
    assert "of which one alone shows nothing" in page_of(store, "evaluation").banners[0].sentence
    assert "no\u00a0interval" in render(page_of(store, "evaluation"))


def test_figures_that_are_no_numbers_are_told_and_the_page_stands(store, publish):
    rows = [{"step": i, "objective/kl": math.nan if i > 3 else 0.1, "objective/reward_model_scores": math.inf} for i in range(9)]
    publish_line(store, publish, metric_rows=rows, ppo_metrics={"eval/sampled/score": math.nan, "eval/sampled/kl": math.inf})
    page = page_of(store, "ppo")
    assert page.banners[0].sentence.startswith("PPO diverged: eval/sampled/kl, eval/sampled/score are not numbers")
    assert "ppo@v1: metrics.jsonl: objective/kl is not finite in 5 of 9 rows" in page.missing
    assert "ppo@v1: not finite at the end: eval/sampled/kl, eval/sampled/score" in page.missing
    assert "5 values left out: not finite" in render(page)


def test_a_stage_that_failed_since_comes_first_with_its_reason_and_log(store, publish):
    publish_line(store, publish)
    write_failed_run(store, "ppo", "out of memory on cuda:0; lower ppo.rollout_micro_batch_size")
    page = build_page(gather(store, *find_newest(store)), store.root)
    assert page.banners[0].sentence.startswith("PPO did not end well: out of memory on cuda:0")
    assert any("log.txt" in line for line in page.missing)


def test_a_failure_before_the_newest_artifact_is_over(store, publish):
    publish_line(store, publish)
    write_failed_run(store, "ppo", "out of memory", start="2001-01-01T00:00:00.000+00:00")
    assert "did not end well" not in build_page(gather(store, *find_newest(store)), store.root).banners[0].sentence


def test_where_the_newest_is_damaged_that_is_told_before_what_stands_instead(store, evaluated):
    damaged = store.get("ppo").path
    damaged.chmod(0o755)
    next(path for path in damaged.iterdir() if path.name != "manifest.json" and path.is_file()).unlink()
    done = run("--store", store.root)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ppo@v1: Damaged: ") and lines[0].endswith("; what stands here is of rm@v1")
    assert lines[1].startswith(("rm@v1", "evaluation@v1"))
    assert build_page(gather(store, *find_newest(store)), store.root).banners[0].news == "bad"


def test_an_empty_store_has_nothing_to_report(store):
    with pytest.raises(StoreError, match="one is needed") as raised:
        gather(store, *find_newest(store))
    assert raised.value.exit_code == EXIT_MISSING


def test_what_cannot_be_read_is_told_and_the_rest_stands(store, publish):
    line = publish_line(store, publish, answers=[{"prompt": "p", "response": "r"}])
    broken = publish(store, "evaluation", {"evaluation.json": b"{}", "samples.jsonl": b"no json\n[1]\n"}, parents=[])
    page = page_of(store, broken.ref)
    assert any(text.startswith("evaluation@v1: evaluation.json: Field required") for text in page.missing)
    assert "evaluation@v1: samples.jsonl: 2 lines left out, no samples: line 1, 2" in page.missing
    (line[0].path / "manifest.json").chmod(0o644)
    (line[0].path / "manifest.json").write_text("{}")
    page = page_of(store, "ppo")
    assert any(text.startswith("ppo@v1 was made from sft@v1, which cannot be read") for text in page.missing)


def test_what_was_cut_and_dropped_is_told_and_much_of_it_warned_of(store, publish):
    publish_line(store, publish)
    data = next(section for section in page_of(store, "ppo").sections if section.id == "data")
    assert any("responses dropped: 200 of 2,000 records (10 %)" in text for text in data.warnings)
    assert '<th scope="row">sft@v1</th><td>training</td><td>2,000</td><td>1,800</td><td>200</td>' in data.tables[0].html


def test_warnings_of_a_stage_are_told_with_their_steps_and_notes_stand_below():
    warnings = [
        StageWarning(name="kl", message="KL 12 is over its target; raise ppo.kl_coef", first_step=25, last_step=60),
        StageWarning(name="entropy", message="entropy fell", first_step=7, last_step=7),
        StageWarning(name="chance", message="accuracy is near chance"),
    ]
    assert list_warnings(warnings) == [
        "from step 25 to 60: KL 12 is over its target; raise ppo.kl_coef",
        "at step 7: entropy fell",
        "accuracy is near chance",
    ]
    assert list_notes([]) is None
    assert "<td>a note &lt;b&gt;</td>" in list_notes(["a note <b>"]).html


def test_settings_are_listed_where_they_differ_from_the_defaults(store, publish):
    publish_line(store, publish)
    settings = next(section for section in page_of(store, "ppo").sections if section.id == "settings").tables[0].html
    assert "sft.epochs</th><td>5.0</td><td>1.0</td><td>sft@v1</td>" in settings
    assert "eval_samples</th><td>200</td><td>64</td>" in settings
    assert "ppo.kl_coef" not in settings  # its default


def test_secrets_are_blotted_out_of_all_texts(store, publish, monkeypatch):
    secret, word = "hf_" + "a1B2" * 8, "swordfish77"
    monkeypatch.setenv("MY_API_TOKEN", word)
    evaluation, rows = simulate(num_prompts=3, samples=4)
    line = publish_line(store, publish, ppo_config={"stop_token": secret}, counts={f"prompts {word}": 1})
    evaluation = evaluation.model_copy(update={"missing": (f"judge: {secret} failed",), "judge": f"https://u:{word}@judge"})
    files = {"evaluation.json": evaluation.model_dump_json().encode()}
    files["samples.jsonl"] = "".join(json.dumps(row | {"prompt": word, "response": secret}) + "\n" for row in rows).encode()
    publish(store, "evaluation", files, parents=[{"ref": part.ref, "content_id": part.content_id} for part in line])
    html = render(page_of(store, "evaluation"))
    assert secret not in html and word not in html and "***" in html


@pytest.mark.slow
def test_a_long_run_is_reported_in_five_seconds_and_three_megabytes_and_shown_in_one_second(store, publish):
    metric = '{"step": %d, "objective/reward_model_scores": %f, "objective/kl": %f, "response_length": %d, "eos_rate": 1.0, "lr": 1e-06, '
    metric += '"policy/clipfrac_avg": %f, "loss/policy_avg": %f, "loss/value_avg": %f, "tokens": 900, "val/explained_variance": %f}\n'
    rows = "".join(metric % (i, i % 7 / 9, i / 9e4, i % 50, 1 / (1 + i), i % 3, i % 5, i % 11) for i in range(100_000)).encode()
    answer = '{"way": "sampled", "prompt": "question %d", "response": "' + "word " * 60 + '", "score": %d, "judge_score": %d}\n'
    answers = "".join(answer % (i, i % 97, i % 89) for i in range(10_000)).encode()
    publish_line(store, publish, metric_rows=rows, answers=answers)
    began = time.process_time()  # of this process alone: other tests run beside it
    html = render(page_of(store, "ppo"))
    assert time.process_time() - began < 5
    assert len(html.encode()) < 3_000_000
    assert "From 100,000 rows" in html
    began = time.process_time()
    page = page_data(store, store.get("ppo"))
    assert time.process_time() - began < 1 and len(page["curves"][0]["values"]) == 100_000


def run(*arguments, env=None):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env=env, catch_exceptions=False)


def test_the_command_writes_into_the_store_and_says_the_verdict(store, evaluated):
    done = run("--store", store.root)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("evaluation@v1: PPO is better than SFT: PPO wins")
    path = store.root / "reports" / "ppo-v1.html"
    assert lines[-1] == f"report: {path}"
    assert path.stat().st_size < 1_000_000
    assert "Content-Security-Policy\" content=\"default-src 'none'" in unescape(path.read_text())


def test_a_directory_or_a_file_of_ones_own_and_json(store, evaluated, tmp_path):
    done = run("evaluation", "--store", store.root, "-o", tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert told["path"] == str(tmp_path / "out" / "evaluation-v1.html")
    assert told["verdicts"][0]["news"] == "good" and told["missing"] == []
    run("ppo", "evaluation", "--store", store.root, "-o", tmp_path / "mine.html")
    assert "ppo@v1 and evaluation@v1" in (tmp_path / "mine.html").read_text()


def test_a_link_in_place_of_the_reports_is_refused(store, evaluated, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.root / "reports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="a link"):
        write_report("x", "a.html", store.root, None, private=False)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_report_of_private_artifacts_is_private(store, publish, tmp_path):
    before = os.umask(0o077)
    try:
        publish_line(store, publish)
    finally:
        os.umask(before)
    run("ppo", "--store", store.root, "-o", tmp_path / "p.html")
    assert (tmp_path / "p.html").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("environment", "platform", "there"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "1 2 3 4"}, "linux", False),
        ({"DISPLAY": ":10", "SSH_TTY": "/dev/pts/0"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/pts/0"}, "darwin", False),
    ],
)
def test_a_browser_is_opened_only_on_a_desktop(environment, platform, there):
    assert has_desktop(environment, platform) is there
