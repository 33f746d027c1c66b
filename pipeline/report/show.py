"""An artifact -> a page for a terminal: the verdict, the figures that matter, how they went, three answers, what it was made from."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.pasted import complete, pasted
from pipeline.report.headline import labels_of, write_figure
from pipeline.report.lineage import find_problems, lineage_data, print_lineage
from pipeline.report.metrics import read_curves
from pipeline.report.page.build import give_verdicts
from pipeline.report.page.evidence import EVALUATION_KIND, Evidence, gather
from pipeline.report.samples import pick_three, print_sample, read_first
from pipeline.report.sparkline import ASCII_BLOCKS, BLOCKS, draw_sparkline
from pipeline.report.spent import compare_cost, print_cost
from pipeline.report.tables import print_indented, print_line, print_table, print_turned_table
from pipeline.report.verdict import News, place_model, write_share
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from pipeline.text import clean, format_bytes, format_duration, format_number
from stages.evaluate.results import Evaluation
from stages.result import Interval
from stages.spec import SAMPLES_FILE
from stages.statistics.bootstrap import Estimate

_ANSWERS = ("eval/sampled/", "eval/greedy/")  # figures that mean the same of each model that answers
_SHOWN, _CURVES, _SPARKLINE, _SAMPLES = 6, 6, 40, 3
_ID_CHARS = 12
_STYLES: dict[News, str] = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}

# kind -> metric -> label: the first six that were measured are shown; of other kinds those that all tables tell.
_FIGURES: dict[str, dict[str, str]] = {
    "pretrain": {"eval/loss": "held-out loss", "eval/perplexity": "held-out perplexity"},
    "sft": {
        "eval/loss": "held-out loss",
        "eval/sampled/judge_score": "judge (sampled)",
        "eval/greedy/judge_score": "judge (greedy)",
        "eval/sampled/response_tokens": "tokens (sampled)",
        "eval/sampled/finished": "finished (sampled)",
        "eval/greedy/response_tokens": "tokens (greedy)",
    },
    "rm": {
        "eval/accuracy": "held-out accuracy",
        "eval/accuracy_rank_distance_1": "of neighbouring ranks",
        "eval/calibration_error": "calibration error",
        "eval/loss": "held-out loss",
        "eval/length_correlation": "correlation with length",
        "eval/pairs": "held-out pairs",
    },
    "ppo": {
        "eval/ema_sampled/score": "score (average)",
        "eval/ema_sampled/judge_score": "judge (average)",
        "eval/sampled/score": "score (sampled)",
        "eval/sampled/kl": "KL (sampled)",
        "eval/sampled/judge_score": "judge (sampled)",
        "eval/greedy/judge_score": "judge (greedy)",
        "eval/sampled/response_tokens": "tokens (sampled)",
        "eval/sampled/finished": "finished (sampled)",
        "eval/greedy/score": "score (greedy)",
    },
}
# The same of curves.
_SERIES: dict[str, dict[str, str]] = {
    "pretrain": {"train/loss": "loss", "eval/loss": "held-out loss", "train/grad_norm": "gradient norm"},
    "sft": {"train/loss": "loss", "eval/loss": "held-out loss", "train/grad_norm": "gradient norm", "train/learning_rate": "learning rate"},
    "rm": {"train/loss": "loss", "train/accuracy": "accuracy", "eval/accuracy": "held-out accuracy", "train/grad_norm": "gradient norm"},
    "ppo": {
        "objective/reward_model_scores": "score",
        "objective/kl": "KL",
        "eval/sampled/judge_score": "held-out judge",
        "response_length": "response tokens",
        "policy/entropy_avg": "entropy",
        "val/explained_variance": "critic explains",
    },
}


def page_data(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Return what the page shows as plain data."""
    evidence = gather(store, artifact)
    tree = lineage_data(store, artifact)
    samples, unread = _pick(artifact)
    return {
        "verdicts": [{"of": of, "sentence": verdict.sentence, "news": verdict.news} for of, verdict in give_verdicts(evidence)],
        "figures": list_figures(artifact.manifest, _find_parents(evidence, artifact)),
        "evaluation": _list_answers(evidence.evaluation) if evidence.evaluation else [],
        "evaluated_by": evidence.tested.ref if evidence.tested else None,
        "curves": _read_curves(artifact),
        "cost": compare_cost(store.root, artifact),
        "three_samples": samples,
        "tree": tree,
        "problems": list(dict.fromkeys([*evidence.problems, *find_problems(tree), *unread])),
    }


def list_figures(manifest: Manifest, parents: Sequence[Manifest]) -> list[dict[str, Any]]:
    """List the figures that matter, each with what it was before: at the start of PPO, else that of a parent which has it too."""
    rows: list[dict[str, Any]] = []
    for name, label in (_FIGURES.get(manifest.kind) or labels_of(manifest.kind)).items():
        if name not in manifest.metrics or len(rows) == _SHOWN:
            continue
        before, of = manifest.metrics.get(f"eval/start/{name.rpartition('/')[2]}") if "sampled/" in name else None, "the start"
        for parent in parents if before is None else ():
            if name in parent.metrics and name.startswith(_ANSWERS):
                before, of = parent.metrics[name], f"{parent.kind}@v{parent.version}"
                break
        rows.append(
            {
                "name": name,
                "label": label,
                "value": manifest.metrics[name],
                "interval": manifest.intervals[name].model_dump() if name in manifest.intervals else None,
                "before": before,
                "before_of": of if before is not None else None,
            }
        )
    return rows


def print_page(console: Console, artifact: Artifact, data: dict[str, Any]) -> None:
    """Print the page."""
    manifest = artifact.manifest
    made = f"made {manifest.created_utc[:16].replace('T', ' ')} UTC"
    made += f" in {format_duration(manifest.duration_s)}" if manifest.duration_s is not None else ""
    made += f" on {manifest.device}" if manifest.device else ""
    console.print(Text.assemble((artifact.ref, "bold"), clean(f"  {artifact.content_id[:12]}  {made}")), soft_wrap=True)
    for verdict in data["verdicts"]:
        console.print()
        print_indented(console, Text(clean(complete(verdict["sentence"])), style=_STYLES[verdict["news"]]), "")
    for problem in data["problems"]:
        print_indented(console, Text(clean(problem), style="red"), "")
    _print_figures(console, artifact.ref, data["figures"])
    _print_evaluation(console, data)
    _print_curves(console, data["curves"])
    print_cost(console, data["cost"])
    for title, row in data["three_samples"]:
        console.print()
        print_sample(console, row, title)
    console.print()
    print_lineage(console, data["tree"])
    console.print()
    print_line(console, str(artifact.path))
    print_line(console, f"everything: {pasted(f'rlhf show {artifact.ref} --all')}")
    if (artifact.path / SAMPLES_FILE).is_file():
        print_line(console, f"more answers: {pasted(f'rlhf samples {artifact.ref}')}")


def show_data(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Return all that is known of an artifact as plain data."""
    return {
        "ref": artifact.ref,
        "path": str(artifact.path),
        "lineage": [{"ref": parent.ref, "content_id": parent.content_id} for parent in store.lineage(artifact.ref)],
        "manifest": artifact.manifest.model_dump(mode="json"),
        "withdrawn": store.find_withdrawal(artifact),
        "samples": read_first(artifact, _SAMPLES),
    }


def _say_where(manifest: dict[str, Any]) -> str:
    where = f" on {manifest['device']}" if manifest["device"] else ""
    processes = f", {manifest['world_size']} process{'es' * (manifest['world_size'] != 1)}" if manifest["world_size"] else ""
    return f"{manifest['created_utc'].removesuffix('+00:00')} UTC{where}{processes}"


def print_artifact(console: Console, data: dict[str, Any]) -> None:
    """Print an artifact: what it is, from what it was made, how good it is, what it says."""
    manifest = data["manifest"]

    def section(title: str, rows: Iterable[tuple[str, str]]) -> None:
        console.print()
        console.print(Text(title, style="bold"))
        for name, value in rows:
            print_line(console, f"  {name:<36} {value}")

    print_line(console, f"{data['ref']}  {data['path']}", "bold")
    code = manifest["code"]
    made = [
        ("content id", manifest["content_id"]),
        ("made", _say_where(manifest)),
        ("computed in", manifest["precision"] or "not recorded"),
        ("stage time", format_duration(manifest["duration_s"] or 0.0)),
        ("code", f"{(code['commit'] or 'no git checkout')[:_ID_CHARS]}{' with changes' if code['dirty'] else ''}"),
        ("size", format_bytes(sum(entry["size"] for entry in manifest["files"]))),
        ("run", manifest["run_id"] or ""),
        *([("withdrawn", data["withdrawn"])] if data["withdrawn"] else []),
    ]
    section("Made", made)
    section("Lineage", [(parent["ref"], parent["content_id"]) for parent in data["lineage"]] or [("none", "made from the base model")])
    section("Data", [(name, value) for name, value in manifest["data"].items()])
    section("Counts", [(name, str(value)) for name, value in manifest["counts"].items()])
    section("Metrics", [(name, format_number(float(value))) for name, value in sorted(manifest["metrics"].items())])
    section("Hand-off facts", [(name, str(value)) for name, value in manifest["facts"].items() if value is not None])
    for sample in data["samples"]:
        section("Sample", [(name, str(value)) for name, value in sample.items()])


def _find_parents(evidence: Evidence, artifact: Artifact) -> list[Manifest]:
    refs = [parent.ref for parent in artifact.manifest.parents]
    return [each.manifest for each in evidence.line if each.ref in refs]


def _list_answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """List what each model that was evaluated says, sampled, with its figures in words."""
    return [
        {
            "model": answers.model,
            "score": _write_estimate(answers.score),
            "judge": _write_estimate(answers.judge.get("score")),
            "KL": _write_estimate(answers.kl_k1),
            "tokens": format_number(answers.response_tokens.value),
            "finished": write_share(answers.finished.value),
        }
        for answers in sorted(evaluation.answers, key=lambda answers: place_model(answers.model))
        if answers.way == "sampled"
    ]


def _write_estimate(estimate: Estimate | None) -> str:
    """Write a figure with its interval, whose ends have two digits: three of them stand on 80 columns."""
    if estimate is None:
        return ""
    ends = [f"{end:.0f}" if abs(end) >= 100 else f"{end:.2g}" for end in (estimate.low, estimate.high) if end is not None]
    return f"{estimate.value:.3g}" + (f" ({ends[0]} to {ends[1]})" if len(ends) == 2 else "")


def _read_curves(artifact: Artifact) -> list[dict[str, Any]]:
    labels = _SERIES.get(artifact.kind, {})
    points = read_curves(artifact.path, labels).points
    shown = [(name, label, points[name]) for name, label in labels.items() if len(points.get(name, ())) > 1][:_CURVES]
    return [{"name": name, "label": label, "values": [value for _, value in found]} for name, label, found in shown]


def _pick(artifact: Artifact) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    with suppress(StoreError):
        return pick_three(artifact, "ppo" if artifact.kind == EVALUATION_KIND else None)
    return [], []


def _print_figures(console: Console, ref: str, figures: Sequence[Mapping[str, Any]]) -> None:
    if not figures:
        return
    intervals = [Interval.model_validate(figure["interval"]) if figure["interval"] else None for figure in figures]
    rows: list[Sequence[str]] = []
    for figure, interval in zip(figures, intervals, strict=True):
        change = "" if figure["before"] is None else f"{figure['value'] - figure['before']:+.3g} from {figure['before_of']}"
        written = write_figure(figure["value"], None)
        bounds = f"{interval.low:.3g} to {interval.high:.3g}" if interval else ""
        rows.append((figure["label"], written, bounds, f"{interval.n:,}" if interval else "", change))
    console.print()
    titles = ("held-out figure", ref, "95 %", "n", "change")
    shown = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    print_table(console, [titles[place] for place in shown], [[row[place] for place in shown] for row in rows])
    if not any(intervals):
        print_line(console, "no intervals are known of these, as an earlier version made them or nothing varies")


def _print_evaluation(console: Console, data: dict[str, Any]) -> None:
    rows = [row for row in data["evaluation"] if "-" not in row["model"]]  # checkpoints that were kept are the report's
    if not rows:
        return
    columns = [name for name in rows[0] if any(row[name] for row in rows) and {row[name] for row in rows} != {"100 %"}]
    console.print()
    print_line(console, f"Evaluated by {data['evaluated_by']}, sampled", "bold")
    print_turned_table(console, columns, [[row[name] for name in columns] for row in rows])


def _print_curves(console: Console, curves: Sequence[Mapping[str, Any]]) -> None:
    if not curves:
        return
    blocks = BLOCKS if (console.encoding or "").lower().startswith("utf") else ASCII_BLOCKS
    width = max(len(curve["label"]) for curve in curves)
    console.print()
    for curve in curves:
        values = curve["values"]
        drawn = draw_sparkline(values, _SPARKLINE, blocks)
        ends = f"{format_number(values[0])} -> {format_number(values[-1])}"
        print_line(console, f"{curve['label']:<{width}}  {drawn:<{_SPARKLINE}}  {ends}")
