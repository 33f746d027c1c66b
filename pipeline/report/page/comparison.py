"""Evidence of two artifacts -> a page that says what changed between them, where it was made, and what it did."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.report.differences import PARTS
from pipeline.report.headline import labels_of
from pipeline.report.metrics import read_curves
from pipeline.report.page.answers import Answer, choose_cases, read_answers
from pipeline.report.page.blocks import Banner, Page, Section, Table
from pipeline.report.page.build import give_verdicts
from pipeline.report.page.curves import list_metrics, overlay_curves
from pipeline.report.page.evidence import EVALUATION_KIND, Evidence
from pipeline.report.page.facts import tell_making
from pipeline.report.page.findings import write_cell
from pipeline.report.page.over_optimisation import draw_checkpoints
from pipeline.report.scales import format_value
from pipeline.report.verdict import name_model
from pipeline.store.artifact import Artifact
from pipeline.store.compare import Difference, compare_lines
from stages.evaluate.results import Answers

_FIGURES = {"score": "score", "judge": "judge", "kl_k1": "KL, nats", "response_tokens": "length, tokens", "finished": "finished"}


def compare_page(old: Evidence, new: Evidence) -> Page:
    """Build the page of two artifacts."""
    assert old.subject is not None and new.subject is not None
    both = (old, new)
    refs = tuple(_unique(old.subject.ref, new.subject.ref))
    banners = [Banner(name, verdict.sentence, verdict.news) for evidence in both for name, verdict in give_verdicts(evidence)[:1]]
    missing = [problem for evidence in both for problem in evidence.problems]
    differences = compare_lines(*([artifact.manifest for artifact in _nearest_first(evidence)] for evidence in both))
    sections = [_tell_changes(differences, one_kind=old.subject.kind == new.subject.kind), _show_effects(both, differences)]
    rows = [_label_answers(evidence, ref, missing) for evidence, ref in zip(both, refs, strict=True)]
    prompts = [{answer.prompt for answer in answers} for answers in rows]
    if prompts[0] & prompts[1]:
        shared = [answer for answers in rows for answer in answers if answer.prompt in prompts[0] & prompts[1]]
        sections.append(Section("answers", "Answers side by side", groups=choose_cases(shared, refs)))
    else:
        missing.append("no prompt was answered by both, so no answers stand side by side")
    sections += _overlay(both, refs)
    line = list({artifact.ref: artifact for evidence in both for artifact in evidence.line}.values())
    tokens = {artifact.ref: read_curves(artifact.path, ["tokens"]) for artifact in line if artifact.kind == "ppo"}
    sections.append(tell_making(line, tokens))
    return Page(
        f"{old.subject.ref} and {new.subject.ref}", "what changed, and what it did", banners, sections, list(dict.fromkeys(missing))
    )


def _nearest_first(evidence: Evidence) -> list[Artifact]:
    """List the subject, then what it was made from; an evaluation that stands on it is no part of it."""
    assert evidence.subject is not None
    subject, others = evidence.subject, [artifact for artifact in reversed(evidence.line) if artifact.ref != evidence.subject.ref]
    return [subject, *(artifact for artifact in others if artifact.kind != EVALUATION_KIND)]


def _unique(old: str, new: str) -> tuple[str, str]:
    return (old, new) if old != new else (old, f"{new} again")


def _tell_changes(differences: Sequence[Difference], *, one_kind: bool) -> Section:
    cells = [
        (difference.kind, PARTS[change.part], change.name, _write(change.old), _write(change.new))
        for difference in differences
        for change in difference.changes
    ]
    texts = [
        f"{difference.kind}: only {difference.old or difference.new} is there, the other one has none."
        for difference in differences
        if difference.old is None or difference.new is None
    ]
    equal = [difference.kind for difference in differences if difference.same_content and difference.old is not None]
    texts += [f"Equal to the last byte: {', '.join(equal)}."] if equal else []
    texts += [] if one_kind else ["The two are of different kinds: compared is what both have."]
    texts += [] if cells else ["Nothing that is recorded differs: configuration, data, code, versions."]
    caption = "What differs, in the artifact in which it was made"
    head = ("artifact", "what", "", "before", "after")
    return Section("changes", "What changed", texts=texts, tables=[Table(caption, head, cells)] if cells else [])


def _write(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _show_effects(both: Sequence[Evidence], differences: Sequence[Difference]) -> Section:
    """Put the figures side by side: those of the evaluations with their intervals, then the final ones of each stage."""
    tables: list[Table] = []
    found = [_index_answers(evidence) for evidence in both]
    shared = [key for key in found[0] if key in found[1]]
    head = ("", "figure", *(f"{evidence.subject.ref}" for evidence in both if evidence.subject))
    if shared:
        cells = [
            (f"{name_model(key[0])}, {key[1]}", label, *(_estimate(answers[key], name) for answers in found))
            for key in shared
            for name, label in _FIGURES.items()
        ]
        tables.append(Table("Held-out answers, with 95 % intervals", head, [cell for cell in cells if cell[2:] != ("–", "–")]))
    main, others = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for difference in differences:
        labels = labels_of(difference.kind)
        for figure in difference.figures:
            values = format_value(figure.old), format_value(figure.new)
            if figure.name in labels:
                main.append((difference.kind, labels[figure.name], *values))
            others.append((difference.kind, figure.name, *values))
    for caption, cells, folded in (("Final figures of the stages", main, False), ("All final figures", others, True)):
        if cells:
            tables.append(Table(caption, head, cells, folded))
    counts = [
        (d.kind, figure.name.replace("_", " "), format_value(figure.old), format_value(figure.new))
        for d in differences
        for figure in d.counts
    ]
    if counts:
        tables.append(Table("Counts of records that differ", head, counts))
    return Section("effects", "What it did", texts=[] if tables else ["Neither has figures."], tables=tables)


def _index_answers(evidence: Evidence) -> dict[tuple[str, str], Answers]:
    answers = evidence.evaluation.answers if evidence.evaluation else ()
    return {(answer.model, answer.way): answer for answer in answers if "-" not in answer.model}


def _estimate(answers: Answers, name: str) -> str:
    estimate = answers.judge.get("score") if name == "judge" else getattr(answers, name)
    return write_cell(estimate, share=name == "finished")


def _label_answers(evidence: Evidence, ref: str, missing: list[str]) -> list[Answer]:
    """Read the answers of the last model of one side, named after its ref and matched by their prompts."""
    source = evidence.tested or evidence.subject
    assert source is not None
    read = read_answers(source.path, source.kind)
    missing += [f"{source.ref}: {problem}" for problem in read.problems]
    models = [model for model in ("base", "sft", "ppo") if any(answer.model == model for answer in read.rows)]
    last = evidence.subject.kind if evidence.subject and evidence.subject.kind in models else (models or [""])[-1]
    return [replace(answer, model=ref, prompt_key=answer.prompt) for answer in read.rows if answer.model == last]


def _overlay(both: Iterable[Evidence], refs: Sequence[str]) -> list[Section]:
    """Draw the checkpoints of both, and the curves of the newest stage that both have."""
    pairs = list(zip(refs, both, strict=True))
    sections: list[Section] = []
    curves = [(ref, evidence.evaluation.over_optimisation) for ref, evidence in pairs if evidence.evaluation]
    if pictures := draw_checkpoints([(ref, found) for ref, found in curves if found is not None]):
        sections.append(Section("over-optimisation", "Over-optimisation", pictures=pictures))
    for kind in ("ppo", "rm", "sft", "pretrain"):
        found = {ref: artifact for ref, evidence in pairs if (artifact := evidence.find(kind)) is not None}
        if len(found) == 2 and len({artifact.ref for artifact in found.values()}) == 2:
            read = {ref: read_curves(artifact.path, list_metrics(kind)) for ref, artifact in found.items()}
            if pictures := overlay_curves("overlay", kind, read):
                sections.append(Section("curves", f"Curves of {name_model(kind)}", pictures=pictures))
            break
    return sections
