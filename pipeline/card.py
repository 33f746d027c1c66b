"""A manifest -> the model card of an export: README.md as the Hub reads it.

YAML front matter (by huggingface_hub: base model, licence, figures as model-index), then for people: how to use it, data, figures, limits,
lineage. Nothing in it that a user wrote, or a model said, is read as markup.
"""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pipeline.report.headline import labels_of
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import CONFIG_FILE, Manifest
from pipeline.store.store import Store
from pipeline.text import clean, format_number

_TASKS = {"rm": ("text-classification", "reward model"), "ppo": ("text-generation", "policy, aligned by PPO")}
_OTHER_TASK = ("text-generation", "policy")
_MAX_README_BYTES = 1_000_000


def write_card(store: Store, artifact: Artifact, *, whole: bool, dtype: str | None) -> str:
    """Write the card.

    Args:
        store: Where the artifact's ancestors are.
        artifact: What was exported.
        whole: Whether the directory holds a whole model; else an adapter.
        dtype: In which precision the weights were written; None: as they were.
    """
    lineage = store.lineage(artifact.ref)
    lines = [*_front_matter(artifact, lineage, whole), "", *_introduce(artifact, whole, dtype), ""]
    lines += _serve(artifact) if whole else _open_adapter(artifact)
    lines += [*_list_figures(artifact.manifest), *_list_limits(artifact), *_list_data(artifact.manifest), *_list_origin(artifact, lineage)]
    return "\n".join(lines) + "\n"


def _front_matter(artifact: Artifact, lineage: list[Artifact], whole: bool) -> Iterator[str]:
    from huggingface_hub import EvalResult, ModelCardData

    task, _ = _TASKS.get(artifact.kind, _OTHER_TASK)
    eldest = next((each for each in lineage if not each.manifest.parents), artifact)
    base = eldest.manifest.facts.get("base_model")
    results = [
        EvalResult(
            task_type=task,
            dataset_type="held-out",
            dataset_name="held-out records of the training data",
            metric_type=name.removeprefix("eval/"),
            metric_name=label,
            metric_value=artifact.manifest.metrics[name],
        )
        for name, label in labels_of(artifact.kind).items()
        if math.isfinite(artifact.manifest.metrics.get(name, math.nan))
    ]
    data: Any = ModelCardData(
        base_model=None if base is None or Path(str(base)).is_absolute() else clean(str(base)),
        datasets=_hub_datasets(artifact) or None,
        eval_results=results or None,
        library_name="transformers" if whole else "peft",
        license=_find_license(str(base)) if base else None,
        model_name=artifact.ref,
        pipeline_tag=task,
        tags=["rlhf", artifact.kind],
    )
    yield from ("---", data.to_yaml(), "---")


def _introduce(artifact: Artifact, whole: bool, dtype: str | None) -> Iterator[str]:
    manifest = artifact.manifest
    _, what = _TASKS.get(artifact.kind, _OTHER_TASK)
    base = manifest.facts.get("base_model")
    origin = [parent.ref for parent in manifest.parents] or ([_short(str(base))] if base else ["elsewhere"])
    yield f"# {artifact.ref}"
    yield ""
    made = "whole model" if whole else "LoRA adapter"
    yield f"A {what} ({made}{f', weights in {dtype}' if dtype else ''}) made by `rlhf` (SFT, reward model, PPO)"
    architecture = _code(manifest.facts.get("architecture", "unknown"))
    yield f"on {manifest.created_utc[:10]} from {' and '.join(map(_code, origin))}; architecture {architecture}."
    if manifest.imported is not None:
        came = f", where it was `{manifest.imported.ref}`" if manifest.imported.ref else ""
        yield f"It was imported into that store from elsewhere{came}; no stage there made it."


def _serve(artifact: Artifact) -> Iterator[str]:
    yield from ("## Use", "", "With the path of this directory, or its name on the Hub, for `NAME`:", "")
    if artifact.kind != "rm":
        yield from (
            "```",
            "transformers serve NAME --port 8000     # pip install 'transformers[serving]'; or: vllm serve NAME",
            "curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{",
            '  "model": "NAME", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}\'',
            "```",
            "",
            "Prompts are rendered by the chat template that it was trained with; it ends an answer with its end token.",
            "",
        )
        return
    bias, scale = _score_of(artifact.manifest)
    yield from (
        "Its score is not the logit:",
        "",
        "    score = (logit - score_bias) / score_scale",
        "",
        f"with score_bias = {bias!r} and score_scale = {scale!r} (`score.json`), of which",
        "demonstrations have 0 on average. The logit is that of the last token, the end token after the answer:",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("NAME")',
        'model = AutoModelForSequenceClassification.from_pretrained("NAME").eval()',
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)",
        "ids = tokenizer(prompt, add_special_tokens=False).input_ids + tokenizer(answer, add_special_tokens=False).input_ids",
        "logit = model(input_ids=torch.tensor([[*ids, tokenizer.eos_token_id]])).logits[0, 0].item()",
        f"score = (logit - {bias!r}) / {scale!r}",
        "```",
        "",
        "vLLM's `/classify` applies an activation (of one logit: the sigmoid) unless it is told not to; what it then calls `probs` is",
        "the logit:",
        "",
        "```",
        "vllm serve NAME --dtype float32 --runner pooling --pooler-config '{\"use_activation\": false}'",
        "curl localhost:8000/classify -H 'Content-Type: application/json' -d '{",
        '  "model": "NAME", "input": "the rendered prompt, the answer, the end token",',
        '  "add_special_tokens": false, "use_activation": false}\'',
        "```",
        "",
        "Without `--dtype float32` it computes in 16 bits: a logit of 2.704 became 2.703. From a server that does apply the activation:",
        "logit = log(p / (1 - p)), exact only where p is far from 0 and 1.",
        "",
    )


def _open_adapter(artifact: Artifact) -> Iterator[str]:
    base = _code(_short(str(artifact.manifest.facts.get("base_model"))))
    yield from (
        "## Use",
        "",
        f"An adapter: `peft` opens it on its base model, {base}, by the path in `adapter_config.json`. A model that needs neither:",
        f"`rlhf export {artifact.ref} DIR --merge`.",
        "",
    )
    if artifact.kind == "rm":
        bias, scale = _score_of(artifact.manifest)
        yield from (f"score = (logit - score_bias) / score_scale, with score_bias = {bias!r} and score_scale = {scale!r}.", "")


def _list_figures(manifest: Manifest) -> Iterator[str]:
    figures = {name: value for name, value in sorted(manifest.metrics.items()) if name.startswith("eval/") and not name.endswith("_se")}
    if figures:
        yield from ("## Held-out figures", "", "| figure | value | 95 % interval | prompts |", "|---|---|---|---|")
        for name, value in figures.items():
            known = manifest.intervals.get(name)
            interval = f"{format_number(known.low)} to {format_number(known.high)} | {known.n:,}" if known else "|"
            yield f"| {_cell(name)} | {format_number(value)} | {interval} |"
        yield ""
        if (judge := manifest.config.get("judge")) and any("judge_" in name for name in figures):
            yield from (f"The judge is {_code(str(judge))}, which no training has seen.", "")


def _list_limits(artifact: Artifact) -> Iterator[str]:
    yield from ("## Limits", "")
    yield "- The figures are of held-out records of its own training data; of other questions they say nothing."
    if artifact.kind == "rm":
        yield "- A score orders answers to the same prompt. It is no measure across prompts, and says little of answers unlike"
        yield "  those that it was trained on."
    if artifact.kind == "ppo":
        yield "- A higher score of the reward model is what PPO trains for, right or wrong: without a judge it does not show"
        yield "  that answers got better."
    yield "- Nothing was done for safety beyond what its data hold."
    yield from (f"- Warned of while it was trained: {_code(warning.message)}" for warning in artifact.manifest.warnings)
    yield ""


def _list_data(manifest: Manifest) -> Iterator[str]:
    if manifest.data:
        yield from (
            "## Data",
            "",
            "Records, by the hash of their content; what was cut and dropped is counted.",
            "",
            "| records | hash |",
            "|---|---|",
        )
        yield from (f"| {_cell(name)} | {_cell(value)} |" for name, value in sorted(manifest.data.items()))
        yield from ("", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(manifest.counts.items())), "")


def _list_origin(artifact: Artifact, lineage: list[Artifact]) -> Iterator[str]:
    manifest = artifact.manifest
    yield from ("## Lineage", "")
    yield f"- `{artifact.ref}`, content id `{artifact.content_id}`, published {manifest.created_utc}"
    yield from (f"- `{parent.ref}`, content id `{parent.content_id}`" for parent in lineage)
    if manifest.code.commit:
        yield f"- code: {_code(manifest.code.commit)}{' with changes' if manifest.code.dirty else ''}"
    if manifest.packages:
        yield f"- made with {', '.join(_code(f'{name} {version}') for name, version in manifest.packages.items())}"
    if manifest.device:
        yield f"- on {_code(manifest.device)} in {manifest.precision or 'unknown precision'}, {manifest.world_size} processes"


def _score_of(manifest: Manifest) -> tuple[float, float]:
    bias, scale = manifest.facts.get("score_bias"), manifest.facts.get("score_scale")
    return 0.0 if bias is None else float(bias), 1.0 if scale is None else float(scale)


def _hub_datasets(artifact: Artifact) -> list[str]:
    """List the hub's datasets among the sources of the recipe that made it."""
    found: dict[str, None] = {}
    with suppress(OSError, ValueError, AttributeError, TypeError):
        recipe: dict[str, Any] = json.loads((artifact.path / CONFIG_FILE).read_text(encoding="utf-8"))
        kinds = {name.partition(".")[0] for name in artifact.manifest.data}
        for kind, splits in recipe["data"].items():
            for source in cast("dict[str, Any]", splits).values() if kind in kinds else ():
                path = str(source["path"]) if source else ""
                if path.count("/") == 1 and not path.startswith(("/", ".", "~")):
                    found.setdefault(path)
    return list(found)


def _find_license(base: str) -> str | None:
    """Find the licence that a base model's own card names: in its directory, or in the hub's cache; the network is not asked."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    path = Path(base) / "README.md" if Path(base).is_absolute() else None
    with suppress(Exception):  # a card may hold anything
        if path is None:
            cached = try_to_load_from_cache(base, "README.md")
            path = Path(cached) if isinstance(cached, str) else None
        if path is not None and path.stat().st_size <= _MAX_README_BYTES:
            card: Any = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
            return clean(card.data.license) if isinstance(card.data.license, str) else None
    return None


def _short(model: str) -> str:
    """Name a base model without the directories of this machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _code(text: object) -> str:
    return f"`{clean(str(text)).replace('`', chr(39))}`"


def _cell(text: object) -> str:
    return _code(text).replace("|", "\\|")
