"""What surrounds the packages: exact versions, the Makefile's commands, the CI script."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
)  # a line that is no exact pin fails here


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_an_exact_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in needed}
    assert names - {canonical(name) for name in PINS} == set()


def test_the_versions_that_were_tried_together_are_pinned():
    assert PINS["torch"] == "2.13.0"
    assert {PINS["transformers"], PINS["trl"], PINS["deepspeed"]} == {"5.23.0", "1.16.0", "0.19.8"}


def test_constraints_name_no_host_or_path():
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in PINS.values())


@pytest.fixture
def make(tmp_path):
    """A function: make arguments -> what make would run, in a place where everything is installed."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()

    def make(*arguments):
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=30)
        return [line.rstrip() for line in done.stdout.splitlines()]

    return make


def test_each_stage_target_runs_what_it_needs(make):
    assert make("-n", "sft") == [".venv/bin/rlhf run --until sft 'demo'"]
    assert make("-n", "rm") == [".venv/bin/rlhf run --until rm 'demo'"]
    assert make("-n", "ppo") == [".venv/bin/rlhf run --until ppo 'demo'"]
    assert make("-n", "pipeline") == [".venv/bin/rlhf run 'demo'"]


def test_recipe_and_overrides_are_passed_on(make):
    (line,) = make("-n", "rm", "RECIPE=my own.yaml", "SET=ppo.kl_coef=0.1 seed=3", "STORE=/big disk")
    assert line == ".venv/bin/rlhf run --until rm 'my own.yaml' --set 'ppo.kl_coef=0.1' --set 'seed=3' --store '/big disk'"


def test_it_installs_when_the_requirements_changed_and_not_otherwise(make, tmp_path):
    assert not any("pip install" in line for line in make("-n", "test"))
    os.utime(tmp_path / "constraints.txt", (4_000_000_000, 4_000_000_000))
    installs = [line for line in make("-n", "test") if "pip install" in line]
    assert "torch==" in installs[0]
    assert "--constraint constraints.txt --editable" in installs[1]


def test_a_lock_holds_every_package_with_its_hash_and_nothing_else_is_installed_by_it(make, tmp_path):
    os.utime(tmp_path / "constraints.txt", (4_000_000_000, 4_000_000_000))
    installs = [line for line in make("-n", "setup", "LOCK=my lock.txt") if "pip install" in line]
    assert [line.partition("--quiet ")[2] for line in installs] == [
        "--require-hashes --requirement 'my lock.txt'",
        "--no-deps --no-build-isolation --editable .",
    ]
    report = [
        {"metadata": {"name": name, "version": "1.5"}, "download_info": {"url": "https://host/x", **info}}
        for name, info in (("a", {"archive_info": {"hashes": {"sha256": "5" * 64}}}), ("rlhf", {"dir_info": {}}))
    ]
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "lock.json").write_text(json.dumps({"install": report}))
    (write,) = [line for line in make("-n", "lock") if "requirements.lock" in line]
    command = ["bash", "-c", write.replace(".venv/bin/python", sys.executable)]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "build" / "lock.json").write_text("{}")  # as a pip that failed may leave it
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    assert (tmp_path / "requirements.lock").read_text() == f"a==1.5 --hash=sha256:{'5' * 64}\n"


def test_help_lists_every_target(make):
    listed = {line.split()[1] for line in make("help")}
    assert listed >= {"sft", "rm", "ppo", "pipeline", "inspect", "test", "check", "clean", "help"}


def test_ci_runs_the_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("\nmake test")
    subprocess.run(["bash", "-n", script], check=True)


def test_no_file_of_the_packages_is_ignored_by_git_and_thereby_left_out_of_the_wheel():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    paths = [str(path) for package in ("data", "stages", "pipeline") for path in (ROOT / package).rglob("*.[py][ya]*")]
    named = subprocess.run(["git", "check-ignore", "--no-index", *paths], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert [line for line in named.splitlines() if "__pycache__" not in line] == []
