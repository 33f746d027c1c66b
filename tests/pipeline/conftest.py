"""What the tests of the pipeline share: small artifacts, published for real."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import stages
from pipeline.cli import main
from pipeline.launch.environment import QUIET
from pipeline.pasted import forget_given
from pipeline.store.manifest import ManifestFields
from pipeline.store.store import Store
from tests.pipeline.report.evaluations import publish_evaluation, publish_line, simulate

SMALL_MODEL = {"model/config.json": b"{}", "model/model.safetensors": bytes(range(256)) * 8, "metrics.jsonl": b'{"step": 1}\n'}


@pytest.fixture(autouse=True)
def _one_command():
    """A process is one command, which is told of by its name; here one process is many."""
    forget_given()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def publish():
    """A function that writes files into staging and publishes them."""

    def publish(store, kind="sft", files=SMALL_MODEL, **fields):
        with store.staging(kind) as staging:
            for name, content in files.items():
                path = staging.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return store.publish(staging, ManifestFields(**fields))

    return publish


@pytest.fixture(scope="session")
def gain():
    """An evaluation in which PPO gains, and its answers."""
    return simulate(num_prompts=24, samples=4)


@pytest.fixture(scope="session")
def evaluated_store(publish, gain, tmp_path_factory):
    """A store that holds the line of the demo with its evaluation; copy it before changing it."""
    store = Store(tmp_path_factory.mktemp("evaluated") / "store")
    publish_evaluation(store, publish, *gain, publish_line(store, publish))
    return store.root


@pytest.fixture
def evaluated(store, evaluated_store):
    """The line of the demo with its evaluation, in the store."""
    shutil.copytree(evaluated_store, store.root, symlinks=True, dirs_exist_ok=True)
    return SimpleNamespace(line=[store.get(kind) for kind in ("sft", "rm", "ppo")], evaluation=store.get("evaluation"))


@pytest.fixture
def rlhf_here(tmp_path, monkeypatch, capsys):
    """A function: arguments -> how the command ended, in this process, which starts no other unless a stage runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def rlhf_here(*arguments):
        with monkeypatch.context() as patch:
            for name in QUIET:
                patch.setenv(name, "1")  # to have it undone
            patch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
            umask = os.umask(0o022)
            os.umask(umask)
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                os.umask(umask)
        told = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=told.out, stderr=told.err)

    return rlhf_here


@pytest.fixture
def recipe_path(tmp_path):
    """A user's recipe: a small base model directory and JSONL files of their own."""
    return write_project(tmp_path / "project")


@pytest.fixture
def pretraining(recipe_path):
    """Overrides that put pretrain before the recipe's stages."""
    return ("pretrain={}", f"data.texts={recipe_path.parent / 'texts.jsonl'}")


@pytest.fixture
def fake_stages(tmp_path, monkeypatch):
    """Put stage programs that obey the contract but train nothing (fake_stage.py) in place of the real ones, for child processes."""
    monkeypatch.setenv("PYTHONPATH", write_fake_stages(tmp_path / "fake"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A store that one run with fake stages filled, the run's process, and its recipe; copy the store before changing it."""
    directory = tmp_path_factory.mktemp("finished")
    recipe_path = write_project(directory / "project")
    process = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.cli", "run", str(recipe_path), "--store", str(directory / "store")],
        env={**os.environ, "PYTHONPATH": write_fake_stages(directory / "fake")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(process=process, store=directory / "store", recipe_path=recipe_path)


def write_project(directory):
    (directory / "base").mkdir(parents=True)
    (directory / "base" / "config.json").write_text("{}")
    (directory / "base" / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (directory / "base" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    rows = {
        "demonstrations": [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(8)],
        "comparisons": [{"prompt": f"question {i}", "completions": [f"good {i}", f"bad {i}"], "ranks": [1, 2]} for i in range(8)],
        "prompts": [{"prompt": f"question {i}"} for i in range(8)],
        "texts": [{"text": f"question {i}, answer {i}"} for i in range(8)],  # which the recipe does not name
    }
    for kind, records in rows.items():
        (directory / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    path = directory / "recipe.yaml"
    path.write_text(
        "name: mine\n"
        "base_model: base\n"
        "data:\n"
        "  demonstrations: demonstrations.jsonl\n"
        "  comparisons: comparisons.jsonl\n"
        "  prompts: prompts.jsonl\n"
        "  eval_fraction: 0.25\n"
        "evaluate: null\n"
    )
    return path


def write_fake_stages(directory):
    """Write a `stages` package that takes all but the stage programs from the real one; returns the PYTHONPATH that puts it first."""
    package = directory / "stages"
    package.mkdir(parents=True)
    real = Path(stages.__file__).parent
    (package / "__init__.py").write_text(f"__path__ = [{str(package)!r}, {str(real)!r}]\n")
    program = Path(__file__).with_name("fake_stage.py")
    run = f"import runpy\nrunpy.run_path({str(program)!r}, run_name='__main__')\n"
    for stage in ("pretrain", "sft", "rm", "sample"):
        (package / f"{stage}.py").write_text(run)
    for stage in ("ppo", "evaluate"):  # their other modules stay real: the report reads what an evaluation found
        (package / stage).mkdir()
        (package / stage / "__init__.py").write_text(f"__path__ = [{str(package / stage)!r}, {str(real / stage)!r}]\n")
        (package / stage / "__main__.py").write_text(run)
    program = Path(__file__).with_name("fake_tokens.py")
    (package / "tokens.py").write_text(f"import runpy\nrunpy.run_path({str(program)!r}, run_name='__main__')\n")
    return os.pathsep.join([str(directory), str(real.parent)])
