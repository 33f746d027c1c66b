"""S6, S7, S8: 60 edits of each file and reply that we parse give the value or a known error, never anything else."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as draw_by
from hypothesis import strategies as st
from rich.console import Console

from data.load import stream_records
from data.reading import report_on
from data.schema import DataError
from pipeline.errors import ConfigError, SlurmError, StoreError
from pipeline.inputs.records import recall_note
from pipeline.launch import slurm
from pipeline.launch.commands import read_hostfile
from pipeline.launch.events import EventReader
from pipeline.launch.failure import End, StageFailed, describe_failure
from pipeline.recipe.load import load_recipe
from pipeline.report.progress import ProgressView
from pipeline.report.runs import print_runs
from pipeline.report.samples import read_first
from pipeline.runs.listing import list_runs
from pipeline.runs.unfinished import describe_unfinished
from pipeline.store.aliases import read_alias
from pipeline.store.manifest import Manifest, parse_sealed, render_manifest
from pipeline.store.refs import parse_ref
from pipeline.store.removal import plan_collection
from pipeline.store.store import Store
from stages.deepspeed_config import read_deepspeed_json
from stages.lines import read_line
from stages.process.checkpoint import latest_complete
from stages.process.errors import StageError
from stages.responses.vllm_client import read_base_name, read_response
from stages.result import StageResult
from stages.spec import DataSource

EDITS = 60  # more, and others each time, with `make soak`
# What is put into the text, or in the place of a value.
ODD = [
    b"", b"\xff", b"\x00", b"\r", b"\n", b"\n\n", b"\xe2\x80\xa8", b"\xc2\xb2", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\",
    b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"- ", b"#", b"%", b"@", b"&a ", b"*a", b"!!python/object:os.system ", b"<<: ", b"---",
    b"null", b"true", b"-1", b"0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"1e-5", b"0x10", b"9" * 30, b"9" * 400, b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"x" * 70_000, b"$(touch x)", b"../..", b"\x1b[2J", b"{}", b"[]", b'""', b'{"step": []}', b"1\t2",
]  # fmt: skip


@st.composite
def edits(draw, valid):
    """One to three edits of valid content: something odd put in, a piece cut out or said twice, a value replaced, a byte flipped."""
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 1, 2, 5, 20, 10_000])))
        odd = draw(st.sampled_from(ODD))
        kind = draw(st.sampled_from(["put in", "cut", "twice", "flip", "value"]))
        if kind == "put in":
            content = content[:begin] + odd + content[begin:]
        elif kind == "cut":
            content = content[:begin] + content[end:]
        elif kind == "twice":
            content = content[:end] + content[begin:end] + content[end:]
        elif kind == "flip" and begin < len(content):
            content = content[:begin] + bytes([content[begin] ^ draw(st.integers(1, 255))]) + content[begin + 1 :]
        else:  # from a colon to what ends the value
            colon = content.find(b":", begin)
            ends = [place for mark in b",}\n" if (place := content.find(bytes([mark]), colon)) > 0]
            content = content[: colon + 1] + b" " + odd + content[min(ends, default=len(content)) :]
    return content


def rows(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]
TREE = {"message_id": "a", "parent_id": None, "text": "hi", "role": "prompter", "rank": 0, "lang": "en", "message_tree_id": "a"}
DATA = {
    "demonstrations": [
        rows({"prompt": "hi", "completion": "hello"}, {"messages": MESSAGES}),
        rows({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
        rows({"instruction": "add", "input": "1", "output": "2"}),
        rows({"text": "\n\nHuman: hi\n\nAssistant: hello"}, {"text": "### Human: hi### Assistant: hello"}),
        rows(TREE, TREE | {"message_id": "b", "parent_id": "a", "role": "assistant"}),
    ],
    "comparisons": [
        rows({"prompt": "hi", "completions": ["a", "b"], "ranks": [1, 2]}, {"prompt": "hi", "chosen": "a", "rejected": "b"}),
        rows({"chosen": MESSAGES, "rejected": MESSAGES, "score_chosen": 1.5, "score_rejected": 0}),
        rows({"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"}),
        rows({"history": "hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 3, "score_B": 1}),
        rows({"instruction": "hi", "completions": [{"response": "a", "overall_score": 5}, {"response": "b", "overall_score": 4}]}),
        rows(TREE, *(TREE | {"message_id": name, "parent_id": "a", "role": "assistant", "rank": n} for n, name in enumerate("bc"))),
    ],
    "prompts": [rows({"prompt": "hi"}, {"messages": MESSAGES}, {"prompt": MESSAGES[:1]}), rows({"text": "hi"})],
    "texts": [rows({"text": "hi"}, {"text": "there", "source": "x"})],
}
RECIPE = b"""name: mine
base_model: demo
data: {demonstrations: demo, comparisons: demo, prompts: demo, eval_fraction: 0.25}
tokens: {max_prompt_tokens: 96, template_args: {date: 2024-01-01}}
sft: {epochs: 2, learning_rate: 1e-3, lora: {rank: 8, target_modules: [q_proj, v_proj]}, trainer_args: {optim: adamw_torch}}
ppo:
  iterations: 6
  rollout: {engine: torch}
hardware: {device: cpu, threads: 1, sbatch: [--time=1:00:00], remote_shell: "ssh {host} {command}"}
"""
FACTS = {
    "base_model": "b", "tokenizer_hash": "t", "chat_template_hash": "c", "vocab_size": 3, "pad_token_id": 0, "eos_token_id": 1,
    "form": "full", "architecture": "A",
}  # fmt: skip
RESULT = {"metrics": {"eval/loss": 0.5}, "facts": FACTS, "counts": {"records": 8}, "world_size": 1, "device": "cpu", "precision": "float32"}
MANIFEST = {
    "kind": "sft", "version": 1, "content_id": "a" * 64, "created_utc": "2026-01-01",
    "files": [{"path": "x/y", "size": 1, "sha256": "b" * 64}],
    "parents": [{"ref": "sft@v1", "content_id": "c" * 64}], "metrics": {"a": 1.0}, "config": {"a": {"b": 1}},
}  # fmt: skip
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
RUN = "runs/ppo-0123456789abcdef"
NOW = "2026-11-26T14:50:32+00:00"
ATTEMPT = {
    "user": "me", "host": "node3", "process": 4711, "command": "rlhf run", "start": NOW, "end": NOW, "duration_s": 1.5, "outcome": "failed",
    "reason": "no", "exit_code": 3, "ref": None,
}  # fmt: skip
BEGIN = json.dumps({"event": "begin", "versions": {"sft@v1": "a" * 64}, "store": "b", "at": NOW, "by": "me", "previous": "0" * 64}).encode()
PUBLISH = {"event": "publish", "ref": "rm@v1", "manifest": "c" * 64, "cache_key": "d", "at": NOW, "by": "me"}
LEDGER = BEGIN + b"\n" + rows(PUBLISH | {"previous": hashlib.sha256(BEGIN).hexdigest()})
CHECKPOINT = json.dumps({"step": 3, "layout": "whole", "files": {"a": {"size": 0, "sha256": EMPTY}}}).encode()
EVENTS = rows(
    {"event": "start", "stage": "sft", "unit": "step", "resumed_step": 3},
    {"event": "progress", "phase": "train", "step": 1, "total": 9, "metrics": {"train/loss": 0.5}},
    {"event": "note", "message": "x"},
    {"event": "machine", "device": "cpu", "precision": "float32"},
    {"event": "error", "message": "no", "exit_code": 5},
)
TORCHRUN = b"""step 1
error: x
E1126 torch/distributed/elastic/multiprocessing/api.py] failed
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4711)
"""


def read_recipe(path):
    load_recipe(path)


def show_events(path):
    """As a run does: told to the view, and described where the stage then fails."""
    reader = EventReader(path.with_name("none"))
    reader._path = path
    view = ProgressView(Console(file=path.with_name("out").open("w")))
    events = reader.read()
    for event in events:
        view.stage_event(event)
        view.tokens_event(event)
    error = next((event for event in events if event.get("event") == "error"), None)
    raise describe_failure("sft", [End(None, 1, True)], None, error, path, 0)


def read_report(path):
    raise describe_failure("sft", [End("node", 137, True), End(None, -35, False)], None, None, path, 0)


def seal_manifest(path):
    """The seal holds: whoever edits may seal anew."""
    content = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(content)
    except ValueError:
        parse_sealed(content)
    else:
        parse_sealed(render_manifest(manifest))


def read_result(path):
    result = StageResult.model_validate_json(path.read_bytes())
    assert StageResult.model_validate_json(result.model_dump_json()).counts == result.counts


def read_checkpoint(path):
    marker = path.with_name("checkpoints") / "checkpoint-3" / "COMPLETE.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    (marker.parent / "a").write_bytes(b"")
    marker.write_bytes(path.read_bytes())
    latest_complete(marker.parents[1], warn=lambda text: None)


def read_note(path):
    """Its seal holds."""
    content = path.read_bytes()
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    recall_note(path)


def read_an_alias(path):
    alias = path.with_name("aliases") / "ppo" / "best.json"
    alias.parent.mkdir(parents=True, exist_ok=True)
    alias.write_bytes(path.read_bytes())
    read_alias(path.parent, "ppo", "best")


def put_into_store(path, name):
    """A store that holds nothing but this."""
    place = path.with_name("store") / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(path.read_bytes())
    return Store(path.with_name("store"))


def read_a_ledger(path):
    for ref, entry in put_into_store(path, "ledger.jsonl").find_lost().items():
        assert f"{ref}: it {entry}"


def read_a_mark(path):
    store = put_into_store(path, "artifacts/.ledger.json")
    (store.root / "ledger.jsonl").write_bytes(LEDGER)
    store.find_lost()


def read_withdrawals(path):
    put_into_store(path, "withdrawn.json").has_withdrawals()


def show_runs(path):
    print_runs(Console(file=io.StringIO()), list_runs(put_into_store(path, f"{RUN}/run.json")), path)


def find_inputs_of_a_run(path):
    """As `rlhf gc` and `rlhf plan` do."""
    store = put_into_store(path, f"{RUN}/spec.json")
    complete = store.root / RUN / "checkpoints" / "checkpoint-2" / "COMPLETE.json"
    complete.parent.mkdir(parents=True, exist_ok=True)
    complete.touch()
    describe_unfinished(store.root, "ppo", "ppo-1123456789abcdef", {"seed": 1})
    plan_collection(store, 1)


def show_samples(path):
    class Artifact:
        path: Path

    artifact = Artifact()
    artifact.path = path.parent
    path.rename(path.with_name("samples.jsonl"))
    for sample in read_first(artifact, 3):
        assert isinstance(sample, dict) and str(sample)


def read_reply(path):
    reply = json.loads(path.read_bytes())
    read_base_name(reply) if "data" in reply else read_response(reply, 4, 10)


def read_job(path):
    text = path.read_bytes().decode("utf-8", "replace")
    slurm.read_job("squeue", text)


def read_state(path):
    fields = slurm.read_fields(path.read_bytes().decode("utf-8", "replace"))
    assert 0 < slurm.read_exit_code(fields) < 256


SHA = "d" * 64
VALID_REPLY = ValueError, TypeError, LookupError, AttributeError, RecursionError  # as `VLLMEngine` takes them
PARSERS = {
    "recipe": (read_recipe, [RECIPE], ConfigError),
    "events": (show_events, [EVENTS], StageFailed),
    "metrics": (lambda path: [read_line(line) for line in path.read_bytes().splitlines()], [rows({"step": 1, "a": 0.5})], ValueError),
    "samples": (show_samples, [rows({"prompt": "a", "response": "b", "score": 0.5}, {"prompt": "c"})], ()),
    "manifest": (seal_manifest, [json.dumps(MANIFEST).encode()], ValueError),
    "result": (read_result, [json.dumps(RESULT).encode()], ValueError),
    "checkpoint": (read_checkpoint, [CHECKPOINT], StageError),
    "alias": (
        read_an_alias,
        [json.dumps({"ref": "ppo@v1", "content_id": SHA, "previous": None, "by": "me", "at": "now"}).encode()],
        StoreError,
    ),
    "ledger": (read_a_ledger, [LEDGER], StoreError),
    "mark": (read_a_mark, [json.dumps({"since": NOW, "first_sha256": hashlib.sha256(BEGIN).hexdigest()}).encode()], StoreError),
    "withdrawn": (
        read_withdrawals,
        [json.dumps({"versions": {"sft@v1": {"seal": SHA, "reason": "it learnt from them", "at": NOW}}}).encode()],
        StoreError,
    ),
    "runs": (show_runs, [json.dumps({"began": 2, "attempts": [ATTEMPT, ATTEMPT | {"outcome": "running"}]}).encode()], ()),
    "spec": (
        find_inputs_of_a_run,
        [json.dumps({"settings": {"seed": 2}, "models": {"sft": "/s/artifacts/sft/v0001/model"}}).encode()],
        StoreError,
    ),
    "ref": (
        lambda path: parse_ref(path.read_bytes().decode("utf-8", "surrogateescape")),
        [b"ppo@v3", b"ppo@best", b"0a1b2c3d"],
        StoreError,
    ),
    "note": (read_note, [json.dumps({"files": [], "findings": {"counts": {}, "errors": [], "warnings": []}}).encode()], ()),
    "DeepSpeed": (read_deepspeed_json, [b'{"zero_optimization": {"stage": "auto"}, "wandb": {"enabled": false}}'], (ValueError, OSError)),
    "hostfile": (read_hostfile, [b"node0 slots=8 address=10.0.0.1\nnode1 # a comment\n"], ConfigError),
    "torchrun": (read_report, [TORCHRUN], StageFailed),
    "job": (read_job, [b"4711"], SlurmError),
    "state": (read_state, [b"JobId=1 JobState=FAILED Reason=None ExitCode=3:0", b"JobState=TIMEOUT ExitCode=0:15"], SlurmError),
    "vLLM": (
        read_reply,
        [
            json.dumps({"data": [{"id": "base", "parent": None}, {"id": "policy", "parent": "base"}]}).encode(),
            json.dumps({"choices": [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [-0.5, -1.5]}}]}).encode(),
        ],
        VALID_REPLY,
    ),
}


def try_edits(directory, valid, parse, known, *, number=EDITS, seed=None):
    """Parse so many edited contents, the same each time unless there is a seed; what is raised must be of the known kinds."""
    name = {"recipe": "r.yaml"}.get(directory.name, "content.jsonl")

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )
    @given(edits(valid))
    def check(content):
        path = directory / name
        path.write_bytes(content)
        try:
            parse(path)
        except known as error:
            assert str(error), type(error)
            if isinstance(error, ConfigError | StoreError | DataError | SlurmError | StageFailed):
                assert str(error).count("\n") < 42 and len(str(error)) < 40_000

    (check if seed is None else draw_by(seed)(check))()


@pytest.mark.parametrize("name", PARSERS)
def test_edits_of_what_we_parse_give_a_value_or_a_known_error(name, tmp_path):
    parse, valid, known = PARSERS[name]
    directory = tmp_path / name
    directory.mkdir()
    for content in valid:  # or no edit would be near what is right
        path = directory / "valid.yaml"
        path.write_bytes(content)
        if known is StageFailed:
            with pytest.raises(StageFailed):
                parse(path)
        else:
            parse(path)
    try_edits(directory, valid, parse, known)


def parse_data(kind):
    """How records of a kind are parsed, valid contents, and what is known to be raised."""

    def parse(path):
        source = DataSource.model_validate({"path": str(path)})
        assert all(record is not None for _, record in stream_records(source, kind, report_on(source)))

    return parse, DATA[kind], DataError


@pytest.mark.parametrize("kind", DATA)
def test_edits_of_data_give_records_or_bad_lines(kind, tmp_path):
    parse, valid, known = parse_data(kind)
    for content in valid:
        (tmp_path / "valid.jsonl").write_bytes(content)
        parse(tmp_path / "valid.jsonl")
    try_edits(tmp_path, valid, parse, known)
