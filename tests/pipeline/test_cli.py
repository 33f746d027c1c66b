"""The command line as a user meets it: processes, exit codes, one-line errors, JSON, nothing that steers the terminal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stages.spec import EXIT_MISSING, EXIT_RESOURCE

RLHF = [sys.executable, "-P", "-m", "pipeline.cli"]


@pytest.fixture
def rlhf(tmp_path):
    """A function: arguments -> the finished process, run in an empty directory with its own store."""

    def rlhf(*arguments, **environment):
        return subprocess.run(
            [*RLHF, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "RLHF_STORE": str(tmp_path / "store"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return rlhf


@pytest.fixture
def recipe_path(finished_run):
    return finished_run.recipe_path


@pytest.fixture
def made(finished_run, tmp_path):
    """The store of a finished run, to look at and to damage."""
    shutil.copytree(finished_run.store, tmp_path / "store")


@pytest.fixture
def own_recipe_path(finished_run, tmp_path):
    """A recipe whose data may be changed."""
    shutil.copytree(finished_run.recipe_path.parent, tmp_path / "own")
    return tmp_path / "own" / "recipe.yaml"


@pytest.mark.slow
def test_a_run_tells_each_stage_and_ends_with_a_summary(finished_run):
    lines, store = finished_run.process.stdout.splitlines(), finished_run.store
    assert lines[0] == "sft: runs, because no artifact yet"
    assert lines[1].startswith(f"sft: log {store}/runs/sft-")
    assert "sft: note: a note" in lines
    assert any(line.startswith("ppo: published ppo@v1 after") for line in lines)
    assert f"ppo@v1: {store}/artifacts/ppo/v0001" in lines
    assert lines[-1].startswith("look at it: rlhf show ppo@v1")
    assert finished_run.process.stderr == ""


def test_a_second_run_reuses_all_and_says_so(made, rlhf_here, recipe_path):
    done = rlhf_here("run", recipe_path)
    assert done.stdout.splitlines()[:3] == [f"{stage}: reused {stage}@v1, nothing it depends on changed" for stage in ("sft", "rm", "ppo")]


@pytest.mark.slow
def test_plan_says_why(made, rlhf, recipe_path):
    done = rlhf("plan", recipe_path, "--set", "ppo.kl_coef=0.1")
    assert done.stdout.splitlines() == [
        "sft  reuse    sft@v1",
        "rm   reuse    rm@v1",
        "ppo  run      because ppo.kl_coef changed 0.05 -> 0.1",
    ]
    rows = json.loads(rlhf("plan", recipe_path, "--set", "rm.epochs=2", "--json").stdout)
    assert [row["action"] for row in rows] == ["reuse", "run", "depends"]


@pytest.mark.slow
def test_reading_commands_have_json(made, rlhf):
    rows = json.loads(rlhf("ls", "--json").stdout)
    assert [row["ref"] for row in rows] == ["ppo@v1", "rm@v1", "sft@v1"]
    shown = json.loads(rlhf("show", "ppo", "--json").stdout)
    assert [parent["ref"] for parent in shown["lineage"]] == ["sft@v1", "rm@v1"]
    assert json.loads(rlhf("verify", "--json").stdout) == {"ppo@v1": [], "rm@v1": [], "sft@v1": []}


def state_of(directory):
    """Names, sizes, modes and times, that of the last change of anything included, of all below a directory."""
    entries = {path: path.lstat() for path in [directory, *directory.rglob("*")]}
    return {path: (entry.st_ino, entry.st_size, entry.st_mode, entry.st_mtime_ns, entry.st_ctime_ns) for path, entry in entries.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["ls", "sft", "--json"],
        ["show", "ppo"],
        ["verify"],
        ["config", "RECIPE"],
        ["plan", "RECIPE"],
        ["plan", "RECIPE", "--set", "data.eval_fraction=0.5"],  # of which there is no note
        ["plan", "demo"],
        ["gc", "--keep", "1"],
        ["runs"],
    ],
)
@pytest.mark.slow
def test_a_reading_command_leaves_the_store_as_it_was(made, rlhf, tmp_path, recipe_path, arguments):
    leave_dead(tmp_path / "store")
    before = state_of(tmp_path / "store")
    done = rlhf(*(recipe_path if word == "RECIPE" else word for word in arguments))
    assert done.returncode == 0, done.stderr
    assert state_of(tmp_path / "store") == before


def leave_dead(directory):
    """Leave what a dead writer leaves in staging."""
    (directory / ".staging").mkdir(exist_ok=True, parents=True)
    left = directory / ".staging" / f"sft-{'0' * 32}"
    left.mkdir()
    (left / "half.safetensors").write_text("x")
    left.with_name(f"{left.name}.lock").touch()


def test_f7_a_store_whose_staging_is_a_link_loses_nothing(made, rlhf_here, tmp_path, recipe_path):
    foreign = tmp_path / "foreign"
    leave_dead(foreign)
    (foreign / "thesis.tex").write_text("precious")
    (tmp_path / "store" / ".staging").rmdir()
    (tmp_path / "store" / ".staging").symlink_to(foreign / ".staging")
    before = state_of(tmp_path)
    for arguments in (["ls"], ["show", "ppo"], ["plan", recipe_path], ["verify"]):
        assert rlhf_here(*arguments).returncode == 0
    done = rlhf_here("run", recipe_path)
    told = f"{tmp_path}/store/.staging: a link, which is not followed; the store's own is needed there; "
    assert done.returncode == 5 and done.stderr.startswith(told) and done.stderr.count("\n") == 1
    assert state_of(tmp_path) == before


def test_a_run_removes_what_dead_writers_left_even_where_it_reuses_all(made, rlhf_here, tmp_path, recipe_path):
    leave_dead(tmp_path / "store")
    assert rlhf_here("run", recipe_path).returncode == 0
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


@pytest.mark.slow
def test_a_stage_is_run_with_what_it_needs_or_alone(rlhf, recipe_path, fake_stages):
    alone = rlhf("run", recipe_path, "--only", "rm")
    assert alone.returncode == 4
    assert alone.stderr == f"sft: nothing to reuse, because no artifact yet; rm needs it; run `rlhf run {recipe_path} --until rm`\n"
    assert rlhf("run", recipe_path, "--until", "rm").returncode == 0
    assert rlhf("run", recipe_path, "--only", "ppo").returncode == 0
    forced = rlhf("run", recipe_path, "--from", "rm", "--force")
    assert "rm: published rm@v2" in forced.stdout
    assert "ppo: published ppo@v2" in forced.stdout
    assert "sft: reused sft@v1" in forced.stdout


@pytest.mark.slow
def test_an_alias_names_a_version(made, rlhf):
    assert rlhf("alias", "ppo@v1", "best").stdout == "ppo@best -> ppo@v1\n"
    assert rlhf("show", "ppo@best").stdout.startswith("ppo@v1  ")
    heading, *rows = rlhf("ls").stdout.splitlines()
    (row,) = (row for row in rows if row.startswith("ppo@v1 "))
    assert row.index(" best") + 1 == heading.index("alias")  # not among what it was made from


def test_what_nothing_needs_is_shown_first_and_removed_when_asked(made, rlhf_here, tmp_path):
    stays = "the 3 newest versions of each kind, what an alias names, and what those and unfinished runs were made from stay"
    assert rlhf_here("gc").stdout.replace("\n", " ") == f"nothing to remove: {stays}; `--keep 1` keeps fewer "
    shutil.copytree(tmp_path / "store/artifacts/ppo/v0001", tmp_path / "store/artifacts/ppo/v0002")
    assert "ppo@v2: damaged, stays" in rlhf_here("gc", "--keep", "1").stdout  # it names ppo@v1
    assert rlhf_here("rm", "ppo@v2").stdout == "removed ppo@v2\n"
    assert rlhf_here("import", "store/artifacts/ppo/v0001").returncode == 0
    assert rlhf_here("gc", "--keep", "1").stdout.endswith("; `rlhf gc --keep 1 --remove` removes them\n")
    assert rlhf_here("rm", "ppo@v2").stdout == "removed ppo@v2\n"
    done = rlhf_here("rm", "sft@v1")
    assert (done.returncode, done.stderr) == (2, "sft@v1: ppo@v1 was made from it; remove that too, or keep this\n")
    assert rlhf_here("tag", "ppo@v1", "best").stdout == "ppo@best -> ppo@v1\n"
    assert rlhf_here("rm", "ppo@best", "ppo@v1").stdout == "removed ppo@best\nremoved ppo@v1\n"
    assert json.loads(rlhf_here("gc", "--json").stdout) == {"refs": [], "bytes": 0, "removed": False, "damaged": [], "spared": []}
    assert rlhf_here("gc", "--keep", "0").returncode == 2


def test_verify_finds_a_flipped_byte(made, rlhf_here, tmp_path):
    path = tmp_path / "store/artifacts/rm/v0001/model/model.safetensors"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    done = rlhf_here("verify")
    assert done.returncode == 3
    assert "rm@v1: " in done.stdout
    assert "model.safetensors" in done.stdout


@pytest.mark.parametrize("arguments", [["verify"], ["verify", "--json"], ["verify", "sft"]])
def test_f6_verify_of_a_store_with_nothing_in_it_is_no_success(rlhf_here, tmp_path, arguments):
    for made in (False, True):
        if made:
            (tmp_path / "store" / "artifacts" / "sft").mkdir(parents=True)
        done = rlhf_here(*arguments)
        assert done.returncode == 4 and done.stdout == "" and done.stderr.count("\n") == 1
        assert str(tmp_path / "store") in done.stderr
    if len(arguments) < 2:
        assert done.stderr.startswith(f"{tmp_path}/store: no artifacts; a store with some is needed; ")


@pytest.mark.parametrize("arguments", [["verify", ""], ["show", ""], ["ls", ""], ["alias", "", "x"], ["run", "demo", "--only", ""],
                                       ["run", "demo", "--from", ""], ["plan", "demo", "--until", ""]])  # fmt: skip
def test_f6_an_empty_word_is_a_mistake_and_not_all(made, rlhf_here, arguments, tmp_path):
    before = state_of(tmp_path)
    done = rlhf_here(*arguments)
    assert done.returncode == 2 and done.stdout == "" and "needed" in done.stderr
    assert state_of(tmp_path) == before


def test_f6_a_run_that_reuses_says_whose_bytes_it_did_not_read(made, rlhf_here, recipe_path, fake_stages):
    unread = "reused with sizes checked, not each byte: {}; `rlhf verify` reads them all\n"
    assert unread.format("sft@v1, rm@v1, ppo@v1") in rlhf_here("run", recipe_path).stdout
    done = rlhf_here("run", recipe_path, "--set", "rm.epochs=2", "--until", "rm")  # starts from SFT, whose bytes are read
    assert done.returncode == 0 and "reused with sizes checked" not in done.stdout


@pytest.mark.parametrize("name", ["a file", "x" * 300, "file/below", "loop"])
def test_f12_a_path_that_can_be_no_store_is_told_in_a_line(rlhf_here, recipe_path, tmp_path, name):
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for arguments in (["ls"], ["verify"], ["show", "sft"], ["plan", recipe_path], ["run", recipe_path], ["alias", "sft", "best"]):
        done = rlhf_here(*arguments, "--store", tmp_path / name)
        assert done.returncode in (2, 4, 5) or (name == "file/below" and arguments[0] in ("ls", "plan")), arguments
        assert done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr
    if name == "a file":
        assert done.returncode == 2 and done.stderr.startswith(f"--store: found {tmp_path}/a file, which is no directory; needed one, ")


def test_f12_a_store_whose_name_is_no_text_is_read_and_not_written(made, rlhf_here, recipe_path, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    (tmp_path / "store").rename(odd)
    for arguments in (["ls"], ["ls", "--json"], ["show", "ppo"], ["show", "ppo", "--json"], ["verify"], ["plan", recipe_path]):
        done = rlhf_here(*arguments, "--store", odd)
        assert done.returncode == 0, done.stderr
    for arguments in (["run", recipe_path], ["check-data", recipe_path], ["launch-command", "sft", recipe_path]):
        done = rlhf_here(*arguments, "--store", odd)
        assert done.returncode == 2 and done.stderr.startswith("--store: found ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("umask", "private", "file", "directory"), [(0o022, [], "444", "555"), (0o027, [], "440", "550"),
                                                                     (0o022, ["--private"], "400", "500")])  # fmt: skip
def test_f11_what_a_run_leaves_follows_the_umask_unless_it_is_private(
    rlhf_here, recipe_path, fake_stages, tmp_path, umask, private, file, directory
):
    before = os.umask(umask)
    try:
        done = rlhf_here("run", recipe_path, "--until", "sft", *private)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    store = tmp_path / "store"
    (artifact,) = store.glob("artifacts/sft/v*")
    assert {path.name: oct(path.stat().st_mode & 0o777)[2:] for path in artifact.rglob("*")} == {
        path.name: directory if path.is_dir() else file for path in artifact.rglob("*")
    }
    assert oct(artifact.stat().st_mode & 0o777)[2:] == directory
    others = 0o077 if private else umask
    for path in (store, *store.rglob("*")):
        assert path.stat().st_mode & others == 0, path
    (run_dir,) = store.glob("runs/sft-*")
    assert run_dir.stat().st_mode & 0o777 == 0o777 & ~others


def test_what_a_model_says_does_not_steer_the_terminal(made, rlhf):
    shown = rlhf("show", "ppo", FORCE_COLOR="1", TERM="xterm").stdout
    assert "hi there" in shown
    assert "[bold]hello[/bold] you" in shown  # markup is text
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ["run", "nope.yaml"],
            2,
            "nope.yaml: found no such recipe, needed a file or one of demo, llama-3.1-8b-lora, llama-3.1-8b-qlora, ",
        ),
        (["plan", "dem.yaml"], 2, "check the path"),
        (["plan", "qwen2.5-0.5b-lorra"], 2, "llama-3.3-70b-lora, qwen2.5-0.5b-lora; did you mean qwen2.5-0.5b-lora?"),
        (["push", "ppo", "/mnt/team"], 2, "'/mnt/team': a path, which is no address; write file:///mnt/team"),
        (["plan", "demo", "--set", "ppo.kl=1"], 2, "--set: ppo.kl: unknown key; did you mean ppo.kl_coef?"),
        (["run", "--only", "dpo"], 2, "needed a stage: pretrain, sft, rm, ppo"),
        (["run", "--only", "pretrain"], 2, "found pretrain, but the recipe has no block of that name"),
        (["run", "--only", "rm", "--until", "ppo"], 2, "--only is a stage alone"),
        (["run", "--from", "ppo", "--until", "sft"], 2, "comes after"),
        (["run", "--nope"], 2, "No such option"),
        (["rnu"], 2, "Did you mean 'run'?"),
        (["sft", "mine.yaml"], 2, "Stages are run by: rlhf run RECIPE --until sft"),
        (["pipeline"], 2, "Stages are run by: rlhf run RECIPE"),
        (["train", "mine.yaml"], 2, "No such command 'train'. Stages are run by: rlhf run RECIPE"),
        (["run", "mine.yaml", "--seed", "3"], 2, "Keys of the recipe are given by: --set seed=3"),
        (["run", "mine.yaml", "--dry-run"], 2, "What would be done is said by: rlhf plan"),
        (["help", "run"], 2, "No such command 'help'. Help is: rlhf run --help"),
        (["rm", "mine.yaml"], 2, "a reward model is trained by: rlhf run mine.yaml --until rm"),
        (["show", "../../etc"], 2, "is no ref"),
        (["show", "-x"], 2, "No such option"),
        (["show", "ppo@v9"], 4, "no artifact ppo@v9"),
        (["show", "sft\x1b[2J"], 2, "is no ref"),
        (["alias", "ppo", "x"], 4, "no artifact of kind ppo"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_told_without_traceback(rlhf, arguments, code, told):
    done = rlhf(*arguments)
    assert done.returncode == code
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.slow
def test_the_version_stands_with_those_of_what_it_stands_on(rlhf):
    told = rlhf("--version")
    assert told.returncode == 0 and told.stdout.count("\n") == 1
    assert re.match(r"rlhf \d+\.\d+\.\d+, python 3\.\d+\.\d+, torch 2\.", told.stdout)


@pytest.mark.slow
def test_bad_data_is_told_with_every_line(rlhf, own_recipe_path):
    (own_recipe_path.parent / "prompts.jsonl").write_text('{"prompt": 3}\n{"prompt": ""}\n')
    for command in ("run", "plan", "check-data"):
        done = rlhf(command, own_recipe_path)
        assert done.returncode == 2
        assert "prompts.jsonl:1: prompt: " in done.stderr
        assert "prompts.jsonl:2: prompt: " in done.stderr


@pytest.mark.slow
def test_check_data_counts(rlhf, own_recipe_path, fake_stages):
    with (own_recipe_path.parent / "prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": "question 1"}\n')
    found = json.loads(rlhf("check-data", own_recipe_path, "--json").stdout)
    assert found["prompts"]["counts"]["train"] + found["prompts"]["counts"]["eval"] == 9
    assert found["prompts"]["counts"]["duplicates"] == 1
    shown = rlhf("check-data", own_recipe_path).stdout
    assert "1 training records occur more than once" in shown
    of_prompts = shown.partition("\nprompts\n")[2].splitlines()
    assert [line.split()[:-1] for line in of_prompts[1:4]] == [["train"], ["held", "out"], ["duplicates"]]
    assert of_prompts[4] == "  no leaked prompts"  # and nothing of what only comparisons have
    assert shown.count("comparisons without pair") == 1


@pytest.mark.slow
def test_the_format_of_each_file_and_what_was_done_to_it_is_told(rlhf, own_recipe_path, fake_stages):
    directory = own_recipe_path.parent
    rows = [{"conversations": [{"from": "human", "value": f"question {i}"}, {"from": "gpt", "value": "x"}]} for i in range(8)]
    (directory / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": 9}\n')
    options = ("--set", f"data.demonstrations.train={directory}/chats.jsonl", "--set", "data.skip_bad=1")
    line = "chats.jsonl: read as ShareGPT: conversations/from/value; 1 bad lines skipped"
    found = json.loads(rlhf("check-data", own_recipe_path, *options, "--json").stdout)
    assert found["demonstrations"]["sources"] == [line]
    assert found["demonstrations"]["skipped"][0].endswith("chats.jsonl:9: conversations: missing; needed a list of turns; add it")
    shown = rlhf("check-data", own_recipe_path, *options).stdout
    assert line in shown and "skipped: " in shown
    told = rlhf("run", own_recipe_path, *options, "--until", "sft").stdout
    assert f"demonstrations: {line}" in told
    assert "comparisons: " not in told  # in our own columns: nothing to tell


@pytest.mark.slow
def test_format_and_columns_can_be_set_beside_a_path_given_as_text(rlhf, own_recipe_path, fake_stages):
    (own_recipe_path.parent / "prompts.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n')
    assert rlhf("check-data", own_recipe_path, "--set", "data.prompts.train.columns.prompt=question").returncode == 0
    done = rlhf("check-data", own_recipe_path, "--set", "data.prompts.train.columns.promt=question")
    assert done.returncode == 2
    assert "data.prompts.train.columns: found 'promt', which no format has; write ours: theirs; did you mean prompt?" in done.stderr
    assert "'sharegpt'" in rlhf("check-data", own_recipe_path, "--set", "data.prompts.train.format=share").stderr


@pytest.mark.slow
def test_a_failing_stage_ends_with_its_last_lines_and_the_path_of_its_log(rlhf, recipe_path, fake_stages, tmp_path):
    done = rlhf("run", recipe_path, FAKE_SFT="fail:5")
    assert done.returncode == 5
    lines = done.stderr.splitlines()
    assert lines[-3:-1] == ["  | line 39", "error: sft: the loss is nan"]
    assert lines[-1].startswith(f"log: {tmp_path}/store/runs/sft-")
    assert "Traceback" not in done.stderr


def interrupt(recipe_path, store, waiting, number, **environment):
    """Run a recipe until something waits, which leaves a file where `waiting` says; returns (that file, what is told of the signal)."""
    process = subprocess.Popen(
        [*RLHF, "run", recipe_path, "--store", store],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (found := list(store.glob(waiting))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in told
    return found[0], told.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(recipe_path, fake_stages, tmp_path, number):
    def stop():
        waiting, told = interrupt(recipe_path, tmp_path / "store", "runs/rm-*/checkpoints/waiting", number, FAKE_RM="wait")
        waiting.unlink()
        return waiting.parent, told

    checkpoints, told = stop()
    assert told[-2] == f"log: {checkpoints.parent / 'log.txt'}" and (checkpoints.parent / "log.txt").is_file()
    assert told[-1] == "rm had no checkpoint yet, so the same command begins it anew; what was finished before it is kept"
    (checkpoints / "checkpoint-12").mkdir()
    (checkpoints / "checkpoint-12" / "COMPLETE.json").write_text("{}")
    assert stop()[1][-1] == "the same command goes on from the last checkpoint (12)"


def test_a_run_that_is_interrupted_while_token_ids_are_made_names_no_checkpoint_and_no_log_that_goes(recipe_path, fake_stages, tmp_path):
    store = tmp_path / "store"
    _, told = interrupt(recipe_path, store, "tokens/.work-*/waiting", signal.SIGINT, FAKE_TOKENS="wait")
    kept = "those of record sets that are whole are kept, all others made anew"
    assert told == ["error: data: stopped by SIGINT", f"no stage had begun; the same command goes on with the token ids: {kept}"]
    assert not list(store.glob("tokens/.work-*"))


@pytest.mark.slow
def test_config_is_the_resolved_recipe(rlhf, recipe_path):
    shown = json.loads(rlhf("config", recipe_path, "--set", "ppo.kl_coef=1e-1", "--json").stdout)
    assert shown["ppo"]["kl_coef"] == 0.1
    assert shown["ppo"]["clip_range"] == 0.2
    assert "kl_coef: 0.1" in rlhf("config", recipe_path, "--set", "ppo.kl_coef=0.1").stdout
    assert json.loads(rlhf("config", "--schema").stdout)["properties"]["ppo"]


def test_a_pipe_that_closes_early_is_no_error(made, rlhf, tmp_path):
    done = subprocess.run(
        f"{' '.join(RLHF)} show ppo --store {tmp_path / 'store'} | head -1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_a_training(recipe_path, fake_stages, tmp_path):
    store = tmp_path / "store"
    command = f"{' '.join(RLHF)} run {recipe_path} --store {store} --set seed=99 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (store / "artifacts/ppo/v0001/manifest.json").exists()


@pytest.mark.parametrize("arguments", [["ls"], ["show", "ppo", "--json"], ["verify"], ["--help"]])
@pytest.mark.slow
def test_a_command_that_nobody_reads_any_more_ends_quietly_as_programs_in_a_pipe_do(made, tmp_path, arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*RLHF, *arguments], env={**os.environ, "RLHF_STORE": str(tmp_path / "store")}, stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("arguments", ["show ppo", "show ppo --json", "ls", "config"])
def test_a_full_standard_output_is_told_as_that_and_not_as_a_fault_of_the_store(finished_run, arguments):
    command = f"{' '.join(RLHF)} {arguments} > /dev/full"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, env={**os.environ, "RLHF_STORE": str(finished_run.store)}
    )
    assert done.returncode == EXIT_RESOURCE
    assert done.stderr.startswith("standard output could not be written: No space left on device; ")
    assert done.stderr.count("\n") == 1 and "--store" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("output", ["> /dev/full", ">&-", "<&- >&-"])
def test_a_full_or_closed_standard_output_does_not_end_a_training(recipe_path, fake_stages, tmp_path, output):
    command = f"{' '.join(RLHF)} run {recipe_path} --store {tmp_path / 'store'} {output}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "store/artifacts/ppo/v0001/manifest.json").exists()
    assert done.stderr.startswith("standard output could not be written: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_streams_that_were_closed_before_it_began_take_nothing_from_a_command(finished_run):
    def rlhf(arguments):
        return subprocess.run(
            f"{' '.join(RLHF)} {arguments}",
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "RLHF_STORE": str(finished_run.store)},
        )

    assert rlhf("ls <&- 2>&-").stdout == rlhf("ls").stdout != ""
    told = rlhf("ls >&-")
    assert told.returncode == EXIT_RESOURCE
    assert told.stderr.startswith("standard output could not be written: Bad file descriptor; ") and told.stderr.count("\n") == 1
    assert rlhf("show nothing@v1 <&- >&- 2>&-").returncode == EXIT_MISSING


def test_a_full_standard_error_takes_nothing_from_a_command(finished_run):
    command = f"{' '.join(RLHF)} show nothing@v1 --store {finished_run.store} 2> /dev/full"
    assert subprocess.run(command, shell=True, capture_output=True, timeout=60).returncode == EXIT_MISSING


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["plan"], ["plan", "RECIPE"], ["show", "ppo"], ["verify"], ["runs"]])
@pytest.mark.slow
def test_reading_commands_import_no_torch(made, tmp_path, recipe_path, arguments):
    arguments = [str(recipe_path) if word == "RECIPE" else word for word in arguments]
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('heavy:', sorted({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules))))\n"
        "from pipeline.cli import main\n"
        f"sys.argv = ['rlhf', *{arguments!r}]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "RLHF_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.fixture
def rlhf_in_ascii(made, rlhf, own_recipe_path, tmp_path):
    """The same in a terminal that knows ASCII only, with store and recipe in directories of other names."""
    (tmp_path / "store").rename(tmp_path / "läden 日本")
    odd = own_recipe_path.parent.rename(tmp_path / "größe b")
    odd.joinpath("recipe.yaml").rename(odd / "mein rezept ü.yaml")

    def rlhf_in_ascii(*arguments, **environment):
        arguments = [odd / "mein rezept ü.yaml" if word == "RECIPE" else word for word in arguments]
        done = rlhf(*arguments, RLHF_STORE=str(tmp_path / "läden 日本"), **ASCII, **environment)
        assert done.stdout.isascii() and done.stderr.isascii() and "Traceback" not in done.stderr
        return done

    return rlhf_in_ascii


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ls"], "ppo@v1"),
        (["show", "ppo"], r"l\xe4den"),
        (["show", "ppo", "--all"], r"gr\xfcn"),
        (["show", "ppo", "--json"], r"gr\u00fcn"),
        (["verify"], "ppo@v1: intact"),
        (["plan", "RECIPE"], "reuse"),
        (["config", "RECIPE"], r"gr\xF6\xDFe b/demonstrations.jsonl"),
        (["check-data", "RECIPE"], "demonstrations"),
        (["launch-command", "sft", "RECIPE"], r"l\xe4den \u65e5\u672c/runs/sft-"),
        (["--help"], "COMMAND"),
        (["run", "--help"], "RECIPE"),
    ],
)
@pytest.mark.slow
def test_an_ascii_terminal_gets_escapes(rlhf_in_ascii, fake_stages, arguments, told):
    done = rlhf_in_ascii(*arguments)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


@pytest.mark.slow
def test_a_run_in_an_ascii_terminal_gets_escapes_and_its_stages_the_right_paths(rlhf_in_ascii, fake_stages):
    done = rlhf_in_ascii("run", "RECIPE", "--until", "sft", "--set", "seed=99")
    assert done.returncode == 0, done.stderr
    assert r"l\xe4den \u65e5\u672c/artifacts/sft/v0002" in done.stdout
    assert "sft: reused sft@v2" in rlhf_in_ascii("run", "RECIPE", "--until", "sft", "--set", "seed=99").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "nöpe.yaml"], 2, r"n\xf6pe.yaml: found no such recipe"),
        (["plan", "RECIPE", "--set", "data.prompts=grün/x.jsonl"], 2, r"gr\xfcn/x.jsonl"),
        (["show", "größe"], 2, "is no ref"),
        (["plan", "RECIPE", "--set", "größe=1"], 2, "needed key=value"),
    ],
)
@pytest.mark.slow
def test_a_mistake_in_an_ascii_terminal_is_told_with_escapes(rlhf_in_ascii, arguments, code, told):
    done = rlhf_in_ascii(*arguments)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


@pytest.mark.slow
def test_names_that_are_no_text_are_told_as_bytes(rlhf, own_recipe_path, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\nx")
    own_recipe_path.parent.rename(odd)
    told = rlhf("plan", f"{odd}/recipe.yaml")
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 4
    assert all(r"/caf\xe9\nx/" in line and "needed a path in UTF-8" in line for line in told.stderr.splitlines())
    missing = rlhf("run", os.fsdecode(b"caf\xe9.yaml"))
    assert missing.returncode == 2 and missing.stderr.startswith(r"caf\xe9.yaml: found no such recipe")
    assert r"no artifacts in " in rlhf("ls", "--store", odd).stdout


def test_a_store_whose_name_is_no_text_is_refused_before_a_stage_starts(rlhf_here, own_recipe_path, fake_stages):
    done = rlhf_here("run", own_recipe_path, "--store", os.fsdecode(b"caf\xe9"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("--store: found ") and r"/caf\xe9, needed a path in UTF-8" in done.stderr


def test_a_store_in_the_home_directory_is_found(made, rlhf_here, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_STORE", "~/store")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "ppo@v1" in rlhf_here("ls").stdout


def test_a_directory_that_is_gone_is_told(rlhf, tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && {' '.join(RLHF)} ls"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "the working directory is gone; change to another one\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_a_user_without_a_name_is_named_by_number():
    program = "import os; from pipeline.store.aliases import user_name; os.setuid(12345); print(user_name())"
    nameless = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=nameless, capture_output=True, text=True, timeout=60)
    assert done.stdout == "user 12345\n"


@pytest.mark.slow
def test_samples_that_are_none_are_shown_as_what_they_are(rlhf, store, publish):
    lines = [b"[1]", b'{"prompt": "\xff"}', b'{"prompt": "fine", "score": NaN}', b"x" * 8_100_000, b'{"prompt": "after"}']
    publish(store, "sft", {"model/model.safetensors": b"x", "samples.jsonl": b"\n".join(lines[:3]) + b"\n"}, metrics={"a": float("nan")})
    publish(store, "sft", {"model/model.safetensors": b"y", "samples.jsonl": b"\n".join(lines[3:])})
    done = rlhf("show", "sft@v1", "--json")
    samples = json.loads(done.stdout, parse_constant=pytest.fail)["samples"]
    assert [sample.get("not shown") for sample in samples] == [
        "samples.jsonl:1: found list; needed a JSON object",
        "samples.jsonl:2: found the byte 0xff, which is not UTF-8; needed a JSON object",
        None,
    ]
    shown = rlhf("show", "sft@v2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "samples.jsonl:1: found more than 8,000,000 bytes; needed a shorter line" in shown.stdout and "after" in shown.stdout
    assert json.loads(rlhf("ls", "--json").stdout, parse_constant=pytest.fail)[0]["metrics"] == {"a": "NaN"}
