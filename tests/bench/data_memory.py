"""What a rank's training data takes of its memory, apart from what training takes: token files of synthetic ids, mapped and iterated.

    .venv/bin/python -m tests.bench.data_memory [--demonstrations 1000000] [--comparisons 100000] [--batches 2000]

A worker for each process of 1 and 2 builds the trainer of SFT (RM) as the stage does on a model of a few kilobytes, and draws batches of
32 records from its data loader, in its random order. Private is what lies in anonymous memory (`/proc/self/smaps_rollup`); file is what of
mapped files is in memory, which all processes share, and which the kernel takes back when it needs it. Both are told as what they are
above those of the same worker before it opens the file. The files (2.0 and 1.0 GB) lie in a temporary directory until the end.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from data.schema import Comparison, Demonstration, Message, RecordKind
from data.token_file import make_batch, make_schema
from data.token_maker import CHUNK_RECORDS, TOKENS_FILE, open_tokens
from data.token_split import load_places, split_tokens
from data.tokens import EncodedRecord
from tests.bench.protocol import ROOT

_SEED, _EVAL_FRACTION = 1, 0.05
_PROMPT_TOKENS, _ANSWER_TOKENS = 100, 400
_BATCH = 32


def write_file(directory: Path, kind: RecordKind, records: int) -> float:
    """Write a token file of so many records of 500 tokens (comparisons: four answers of 400 to a prompt of 100); returns its GB."""
    arrow: Any = import_module("pyarrow")
    directory.mkdir()
    draw = random.Random(_SEED)
    answers = 4 if kind == "comparisons" else 1
    encoded = [
        EncodedRecord(
            [draw.randrange(1000) for _ in range(_PROMPT_TOKENS)],
            [[draw.randrange(1000) for _ in range(_ANSWER_TOKENS)] for _ in range(answers)],
            tuple(range(1, answers + 1)),
            cut=False,
            dropped=0,
            repeated=0,
            used=True,
        )
        for _ in range(CHUNK_RECORDS)
    ]
    batch, schema = make_batch([_make_record(kind)] * CHUNK_RECORDS, encoded), make_schema()
    column = schema.get_field_index("prompt")
    with arrow.OSFile(str(directory / TOKENS_FILE), "wb") as sink, arrow.ipc.new_file(sink, schema) as writer:
        for start in range(0, records, CHUNK_RECORDS):  # all with the same ids, each record with a prompt of its own
            prompts = [json.dumps([["user", f"Question {start + i}: {'word ' * 80}"]]) for i in range(CHUNK_RECORDS)]
            numbered = batch.set_column(column, schema.field(column), arrow.array(prompts))
            writer.write_batch(numbered.slice(0, records - start))
    load_places(directory, open_tokens(directory), _SEED)  # kept beside it, as the process that makes token ids leaves them
    return (directory / TOKENS_FILE).stat().st_size / 1e9


def _make_record(kind: RecordKind) -> Demonstration | Comparison:
    prompt = (Message("user", ""),)
    return Comparison(prompt, ("a", "b", "c", "d"), (1, 2, 3, 4)) if kind == "comparisons" else Demonstration(prompt, "a")


def read_memory() -> dict[str, float]:
    """Read how much of this process' memory is private, and how much is of mapped files, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return {"private": kb["Anonymous"] / 1e3, "file": (kb["Rss"] - kb["Anonymous"]) / 1e3}


class Peak:
    """The highest private memory while it is watched; transient copies are seen too."""

    def __init__(self) -> None:
        self.private = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.private = max(self.private, read_memory()["private"])

    def end(self) -> float:
        """Return it."""
        self._ended.set()
        self._thread.join()
        return self.private


def serve(given: dict[str, Any]) -> None:
    """Be a worker: open, iterate, and write what it took as one line of JSON."""
    import torch

    from stages.blocks import TokenSettings
    from stages.settings import RMSettings, SFTSettings
    from stages.trl.rm import make_ranking_trainer
    from stages.trl.sft import make_sft_trainer
    from tests.bench.our_models import make_hardware, open_policy, open_reward_model
    from tests.bench.stage_context import make_context
    from tests.bench.workload import make_tokenizer

    torch.set_num_threads(1)
    kind: RecordKind = given["kind"]
    sizes = {"batch_size": _BATCH, "micro_batch_size": _BATCH}
    tokens, tokenizer = TokenSettings(max_prompt_tokens=_PROMPT_TOKENS, max_response_tokens=_ANSWER_TOKENS), make_tokenizer("tiny")
    with tempfile.TemporaryDirectory() as directory:
        settings = RMSettings(**sizes) if kind == "comparisons" else SFTSettings(**sizes, packing=given["packing"])
        context = make_context("rm" if kind == "comparisons" else "sft", settings, tokens, "float32", Path(directory))
        model: Any = (
            open_reward_model("tiny", 1, make_hardware("float32"))
            if kind == "comparisons"
            else open_policy("tiny", 0.1, make_hardware("float32"))
        )
        before, peak, start_s = read_memory(), Peak(), time.monotonic()
        file = open_tokens(Path(given["directory"]))
        train, held_out = split_tokens(kind, file, load_places(Path(given["directory"]), file, _SEED), _EVAL_FRACTION, "synthetic")
        trainer: Any
        if isinstance(settings, RMSettings):
            trainer = make_ranking_trainer(context, settings, model, tokenizer, train.comparisons, held_out.comparisons)
        else:
            trainer = make_sft_trainer(context, settings, model, tokenizer, train.pairs, held_out.pairs)
        loader = iter(trainer.get_train_dataloader())
        next(loader)
        first_s, opened = time.monotonic() - start_s, read_memory()
        for _ in range(given["batches"] - 1):
            next(loader)
        took = {"first_s": first_s, "batches_s": time.monotonic() - start_s - first_s, "private_peak": peak.end() - before["private"]}
        after = read_memory()
    took |= {"private_opened": opened["private"] - before["private"]}
    took |= {name: after[name] - before[name] for name in after} | {"private_before": before["private"]}
    print(json.dumps(took), flush=True)


def main() -> None:
    """Write the files, measure one and two workers on each, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data_memory", description="Measure what training data takes of memory.")
    parser.add_argument("--demonstrations", type=int, default=1_000_000)
    parser.add_argument("--comparisons", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=2000, help=f"of {_BATCH} records, that each worker draws (default 2000)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(json.loads(arguments.worker))
        return
    print("| records | processes | file | first batch | private: opened | peak | at the end | mapped file |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        cases: list[tuple[RecordKind, int, bool]] = [("demonstrations", arguments.demonstrations, False)]
        cases += [("comparisons", arguments.comparisons, False), ("demonstrations", arguments.demonstrations, True)]
        for kind, records, packing in cases:
            directory = Path(temporary) / kind
            size = write_file(directory, kind, records) if not directory.exists() else (directory / TOKENS_FILE).stat().st_size / 1e9
            given = {"kind": kind, "packing": packing, "directory": str(directory), "batches": arguments.batches}
            for processes in (1, 2):
                command = [sys.executable, "-m", "tests.bench.data_memory", "--worker", json.dumps(given)]
                workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
                found = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
                most = {name: max(row[name] for row in found) for name in found[0]}
                name = f"{records:,} {kind}{', packed' if packing else ''}"
                cells = [
                    f"{most['first_s']:.1f} s",
                    *(f"{most[key]:.0f} MB" for key in ("private_opened", "private_peak", "private", "file")),
                ]
                print("|", " | ".join([name, str(processes), f"{size:.1f} GB", *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
