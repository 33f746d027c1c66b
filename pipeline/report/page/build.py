"""Evidence -> a page: verdict, lineage, answers, over-optimisation, reward model, curves, data, settings, making; and what is missing."""

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.charts import Node, graph_table
from pipeline.report.headline import labels_of
from pipeline.report.metrics import Curves, read_curves
from pipeline.report.page.answers import choose_cases, choose_rankings, read_answers
from pipeline.report.page.blocks import Banner, Page, Picture, Section, Table
from pipeline.report.page.curves import draw_curves, list_metrics
from pipeline.report.page.evidence import EVALUATION_KIND, Evidence
from pipeline.report.page.facts import list_notes, list_settings, list_warnings, summarize_data, tell_costs, tell_making
from pipeline.report.page.findings import show_reward_card, tabulate_comparisons, tabulate_judge, tabulate_models
from pipeline.report.page.over_optimisation import show_over_optimisation
from pipeline.report.scales import format_value
from pipeline.report.svg import graph
from pipeline.report.verdict import Verdict, tell_artifact, tell_damage, tell_evaluation, tell_failure, tell_withdrawal, write_share
from pipeline.store.artifact import Artifact
from pipeline.text import count, format_duration
from stages.evaluate.results import Evaluation
from stages.spec import RANKINGS_KIND, STAGES

_UNTRAINED = (EVALUATION_KIND, STAGES["sample"].kind, RANKINGS_KIND)  # no curve, nothing held out of it, and no evaluation stands on it
_NO_JUDGE = "There is no judge; the score is of the reward model that PPO learnt from."
_NAMES = {"pretrain": "Pre-training", "sft": "Supervised fine-tuning", "rm": "Reward model", "ppo": "PPO", EVALUATION_KIND: "Evaluation"}


def give_verdicts(evidence: Evidence) -> list[tuple[str, Verdict]]:
    """Give the verdict on what was asked for, the most important first: damaged, withdrawn, failed since, then what was measured."""
    verdicts = [(row["stage"], tell_failure(row["stage"], row.get("reason", ""))) for row in evidence.failures]
    if evidence.subject is not None and evidence.withdrawn:
        verdicts.insert(0, (evidence.subject.ref, tell_withdrawal(evidence.subject.kind, evidence.withdrawn)))
    instead = evidence.subject.ref if evidence.subject else ""
    verdicts = [*((ref, tell_damage(why, instead)) for ref, why in evidence.damaged.items()), *verdicts]
    if evidence.evaluation is not None and evidence.tested is not None:
        verdicts.append((evidence.tested.ref, tell_evaluation(evidence.evaluation)))
    elif evidence.subject is not None:
        manifest = evidence.subject.manifest
        block = manifest.config.get(evidence.subject.kind)
        answered = block.get("eval_samples") if isinstance(block, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        known = answered if isinstance(answered, int) else None
        kind, ref = evidence.subject.kind, evidence.subject.ref
        verdicts.append((ref, tell_artifact(kind, manifest.metrics, manifest.counts, known, manifest.intervals, ref)))
    return verdicts


def build_page(evidence: Evidence, store_root: Path) -> Page:
    """Build the page of one artifact, and of the evaluation that stands on it."""
    banners = [Banner(name, verdict.sentence, verdict.news) for name, verdict in give_verdicts(evidence)]
    staged = [artifact for artifact in evidence.line if artifact.kind not in _UNTRAINED]
    curves = {artifact.ref: read_curves(artifact.path, list_metrics(artifact.kind)) for artifact in staged}
    missing = [*evidence.problems]
    sections: list[Section] = []
    if (figures := _show_figures(evidence)) is not None:
        sections.append(figures)
    if evidence.line:
        sections.append(_draw_lineage(evidence))
    if (answers := _show_answers(evidence, missing)) is not None:
        sections.append(answers)
    sections += _show_findings(evidence, missing)
    sections += [_show_curves(artifact, curves[artifact.ref], missing) for artifact in staged]
    sections += [told for artifact in evidence.line if artifact.kind in _UNTRAINED and (told := _show_notes(artifact)) is not None]
    if (costs := tell_costs(evidence.line, store_root)) is not None:
        sections.append(costs)
    if evidence.line:
        sections += [summarize_data(evidence.line, store_root), list_settings(evidence.line), tell_making(evidence.line, curves)]
    missing += _tell_missing(evidence)
    subject = evidence.subject
    title = (
        ("No intact artifact" if evidence.damaged else "No artifact yet")
        if subject is None
        else f"{_NAMES.get(subject.kind, subject.kind)} {subject.ref}"
    )
    made = "" if subject is None else f"made {subject.manifest.created_utc[:16].replace('T', ' ')} UTC, content {subject.content_id[:12]}"
    if evidence.tested is not None and subject is not None and evidence.tested.ref != subject.ref:
        made += f"; evaluated by {evidence.tested.ref}"
    return Page(title, made, banners, sections, list(dict.fromkeys(missing)))


def _show_figures(evidence: Evidence) -> Section | None:
    """Show the figures that the verdict stands on."""
    found = evidence.evaluation
    if found is None:
        return _show_final_figures(evidence.subject) if evidence.subject else None
    tables: list[Table] = []
    if found.answers:
        tables.append(tabulate_models(found))
    if found.comparisons:
        tables.append(tabulate_comparisons(found.comparisons, found.judge_unit))
    if (judged := tabulate_judge(found)) is not None:
        tables.append(judged)
    return Section("figures", "In figures", texts=[_tell_judge(found)], tables=tables) if tables else None


def _tell_judge(found: Evaluation) -> str:
    """Say who judged, and how."""
    if found.judge is None:
        return _NO_JUDGE
    if found.judge_doubt is not None:
        return f"Judged by {found.judge}; but {found.judge_doubt}."
    if found.judge_kind == "reward_model":
        return f"Judged by a second reward model, {found.judge}, from which PPO did not learn."
    asked = found.llm
    if found.judge_kind == "function" or asked is None:
        return f"Judged by {found.judge}, which no training has seen."
    lost = f" {asked.malformed:,} with a reply that is no verdict are left out." if asked.malformed else ""
    lost += f" {asked.unasked:,} were not asked (max_cost)." if asked.unasked else ""
    uncounted = f" ({asked.uncounted:,} replies by the most that they can be)" if asked.uncounted else ""
    cost = "" if asked.cost is None else f", cost {format_value(asked.cost)}"
    return (
        f"Judged by the language model {found.judge}: {count(asked.pairs, 'pair')} of an answer and SFT's to the same prompt, each in both "
        f"orders; {asked.agreed:,} with one better, {asked.tie + asked.same:,} ties, {asked.disagreed:,} "
        f"({write_share(asked.disagreement)}) on which the orders disagreed, which count as ties.{lost} {asked.replies:,} replies, "
        f"{asked.input_tokens + asked.output_tokens:,} tokens{uncounted}{cost}."
    )


def _show_final_figures(artifact: Artifact) -> Section | None:
    """Show the final figures of an artifact that no evaluation tells of: the few that matter, the others folded away."""
    metrics, intervals, labels = artifact.manifest.metrics, artifact.manifest.intervals, labels_of(artifact.kind)
    if not metrics:
        return None

    def row(name: str, label: str) -> tuple[str, str, str]:
        interval = intervals.get(name)
        known = f"{format_value(interval.low)} to {format_value(interval.high)}, of {interval.n:,}" if interval else "not known"
        return label, format_value(metrics[name]), known

    head, caption = ("", "value", "95 % interval"), "Held-out figures"
    shown = [row(name, label) for name, label in labels.items() if name in metrics]
    tables = [Table(caption, head, shown)] if shown else []
    tables.append(Table("All final figures", head, [row(name, name) for name in sorted(metrics)], folded=True))
    return Section("figures", "In figures", tables=tables)


def _draw_lineage(evidence: Evidence) -> Section:
    """Draw from what each artifact was made: a stage's artifacts in a row."""
    kinds = list(dict.fromkeys(artifact.kind for artifact in evidence.line))
    layers = [[_make_node(artifact) for artifact in evidence.line if artifact.kind == kind] for kind in kinds]
    there = {artifact.ref for artifact in evidence.line}
    first = next((artifact for artifact in evidence.line if not artifact.manifest.parents), None)
    edges = [(parent, artifact.ref) for artifact in evidence.line for parent in _list_parents(artifact, evidence) if parent in there]
    if first is not None:
        layers.insert(0, [Node("base", "base model", "where it began")])
        edges.append(("base", first.ref))
    title = "Made from"
    picture = Picture(title, graph("lineage", title, layers, edges), graph_table(title, layers, edges))
    return Section("lineage", "Lineage", pictures=[picture])


def _list_parents(artifact: Artifact, evidence: Evidence) -> list[str]:
    """List what an artifact was made from; of an evaluation, which reads all, only what nothing else here was made from."""
    parents = [parent.ref for parent in artifact.manifest.parents]
    if artifact.kind != EVALUATION_KIND:
        return parents
    used = {parent.ref for other in evidence.line if other.kind != EVALUATION_KIND for parent in other.manifest.parents}
    return [ref for ref in parents if ref not in used]


def _make_node(artifact: Artifact) -> Node:
    time = "" if artifact.manifest.duration_s is None else f", {format_duration(artifact.manifest.duration_s)}"
    how = "imported" if artifact.manifest.imported else f"{artifact.content_id[:8]}{time}"
    return Node(artifact.ref, artifact.ref, how)


def _show_answers(evidence: Evidence, missing: list[str]) -> Section | None:
    source = evidence.tested or evidence.subject
    if source is None or source.kind in (STAGES["sample"].kind, RANKINGS_KIND):  # whose answers are ranked on another page
        return None
    read = read_answers(source.path, source.kind)
    missing += [f"{source.ref}: {problem}" for problem in read.problems]
    if not read.rows:
        return None
    groups = choose_rankings(read.rows) if source.kind == "rm" else choose_cases(read.rows)
    text = f"Chosen from {count(len(read.rows), 'answer')}; `rlhf samples {source.ref}` shows the others."
    return Section("answers", "Answers side by side", texts=[text], groups=groups)


def _show_findings(evidence: Evidence, missing: list[str]) -> list[Section]:
    found, sections = evidence.evaluation, list[Section]()
    if found is None:
        return sections
    if found.over_optimisation is not None and found.over_optimisation.curve:
        sections.append(show_over_optimisation(found.over_optimisation, found))
    if found.reward_card is not None:
        sections.append(show_reward_card(found.reward_card))
    missing += found.missing
    return sections


def _show_curves(artifact: Artifact, curves: Curves, missing: list[str]) -> Section:
    missing += [f"{artifact.ref}: {problem}" for problem in curves.problems]
    pictures = draw_curves(artifact.ref.replace("@", "-"), artifact.kind, curves)
    name = _NAMES.get(artifact.kind, artifact.kind)
    texts = [f"From {count(curves.rows, 'row')} of metrics."] if pictures else ["There is no curve of it."]
    place, notes = artifact.ref.replace("@", "-"), list_notes(artifact.manifest.notes)
    return Section(
        f"curves-{place}",
        f"Curves: {name} {artifact.ref}",
        texts=texts,
        warnings=list_warnings(artifact.manifest.warnings),
        pictures=pictures,
        more=[notes] if notes else [],
    )


def _show_notes(artifact: Artifact) -> Section | None:
    """Show what was told while answers were sampled or rankings published, where anything was."""
    warnings, notes = list_warnings(artifact.manifest.warnings), list_notes(artifact.manifest.notes)
    if artifact.kind == EVALUATION_KIND or not (warnings or notes):
        return None
    return Section(f"told-{artifact.ref.replace('@', '-')}", artifact.ref, warnings=warnings, more=[notes] if notes else [])


def _tell_missing(evidence: Evidence) -> list[str]:
    """Say what the report would have shown if it had been there."""
    told: list[str] = []
    for row in evidence.failures:
        why = f": {row['reason']}" if row.get("reason") else ""
        again = f"; it goes on from {row['checkpoint']}" if row.get("checkpoint") else ""
        told.append(f"{row['stage']}: the run {row['run']} {row['outcome']}{why}{again}; its log: {row['path']}/log.txt")
    if evidence.subject is None:
        return told
    if evidence.evaluation is None:
        if (subject := evidence.subject).kind not in _UNTRAINED:
            absent = "so no answers were compared and the reward model was not probed"
            told.append(f"no evaluation stands on {subject.ref}, {absent}; `rlhf run --until evaluate` makes one")
    elif evidence.evaluation.judge is None and not any("no judge" in missing for missing in evidence.evaluation.missing):
        told.append("no judge: nothing can tell whether PPO fools the reward model; name one in the recipe (`judge: module:function`)")
    for artifact in evidence.line:
        bad = sorted(name for name, value in artifact.manifest.metrics.items() if not math.isfinite(value))
        if bad:
            told.append(f"{artifact.ref}: not finite at the end: {_list(bad)}")
        if artifact.manifest.counts and _holds_nothing_out(artifact):
            told.append(f"{artifact.ref}: no held-out data, so nothing says how it does on what it has not seen; give an eval source")
    return told


def _holds_nothing_out(artifact: Artifact) -> bool:
    held_out = [number for name, number in artifact.manifest.counts.items() if name.startswith("held_out_") and name.count("_") == 2]
    return artifact.kind not in _UNTRAINED and not any(held_out)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
