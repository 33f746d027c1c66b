"""Room on the disk is asked for before training, as much as is needed; a disk that fills up all the same ends in exit 5 (faults.md F5)."""

import gc
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib import import_module

import pytest
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from stages.family import find_family
from stages.process.checkpoint import latest_complete
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.process.runtime import _run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")]

LORA = {"rank": 4}
REFUSED = re.compile(r"error: (/\S+): found ([\d,]+) bytes free, needed ([\d,]+) for checkpoints of .* free space, or choose another")


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of 1 MB at first."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def count_used(disk):
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def watched(disk):
    """Inside, look a thousand times a second what the disk holds; gives a list of the most that it held."""
    most, done = [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], count_used(disk))

    thread = threading.Thread(target=watch)
    thread.start()
    yield most
    done.set()
    thread.join()


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("pretrain", {}),
        ("sft", {}),
        ("sft", {"lora": LORA}),
        ("sft", {"lora": LORA | {"merge": True}}),
        ("sft", {"save_every": 100}),
        ("rm", {}),
        ("rm", {"lora": LORA}),
        ("ppo", {"keep_every": 2, "publish": "best", "eval_every": 1}),
        ("ppo", {"lora": LORA, "ema_decay": 0.9}),
    ],
)
def test_a_stage_asks_for_what_it_takes_at_its_peak_and_at_most_five_percent_more(
    make_stage_in, disk, base_model_dir, fresh_reward_model, stage, settings
):
    models = {"pretrain": ("base",), "sft": ("base",), "rm": ("sft",), "ppo": ("sft", "rm")}[stage]
    paths = {"base": base_model_dir, "sft": base_model_dir, "rm": fresh_reward_model}
    settings = {"save_every": 1} | settings
    process = make_stage_in(disk, stage, models={role: paths[role] for role in models}, rows=24, judge=None, own_tokens=True, **settings)
    refused = process.start()
    told = refused.communicate(timeout=300)[0].splitlines()
    assert refused.returncode == 5 and not any("Traceback" in line for line in told)
    path, _, needed = REFUSED.search(told[-1]).groups()
    assert path == str(process.spec.checkpoint_dir) and not list(process.spec.checkpoint_dir.glob("checkpoint-*"))
    resize(disk, "200m")
    before = count_used(disk)
    with watched(disk) as most:
        process.run()
    needed, taken = int(needed.replace(",", "")), most[0] - before
    assert taken <= needed <= 1.05 * taken, f"{needed:,} asked for, {taken:,} taken: {needed / taken:.3f}"


@pytest.fixture(scope="module")
def tried(base_model_dir):
    """What each fork of this process would import, try, compile and collect anew."""
    import_module("deepspeed")  # for which TRL's trainers ask
    find_family(str(base_model_dir))
    get_checkpoint_conversion_mapping("llama")  # a thousand patterns, for whatever family
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of what was imported


def run_here(process, log, *, asks_for_room=True):
    """Run SFT in a fork of this process, which may leave out asking for room; returns the exit code."""
    import stages.sft
    import stages.trl.training

    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = log.open("w")
        try:
            if not asks_for_room:
                stages.trl.training.require_room = lambda *_, **__: None
            process.spec.output_dir.mkdir(exist_ok=True)
            process.spec.checkpoint_dir.mkdir(exist_ok=True)
            code = _run(StageContext(process.spec), stages.sft.main)
            sys.stderr.flush()
        except BaseException as error:
            print("left by", type(error), error, file=sys.stderr, flush=True)
            code = 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.usefixtures("tried")
def test_on_a_disk_of_any_size_a_stage_is_refused_at_its_start_or_done(make_stage_in, disk, tmp_path):
    """It is done from the very size on that its refusal names."""
    log, page = tmp_path / "log.txt", os.sysconf("SC_PAGE_SIZE")

    def run(size):
        resize(disk, size)
        process = make_stage_in(disk, "sft", tag="one", rows=24, judge=None, eval_samples=0, epochs=1, save_every=1, own_tokens=True)
        code = run_here(process, log)
        assert code == 0 or not list(process.spec.checkpoint_dir.glob("checkpoint-*")), log.read_text()
        subprocess.run(["rm", "-r", str(disk / "sft-one")], check=True)
        return code

    assert run(2**20) == 5
    _, found, needed = REFUSED.search(log.read_text().splitlines()[-1]).groups()
    enough = 2**20 - int(found.replace(",", "")) + int(needed.replace(",", ""))
    enough += -enough % page
    sizes = [enough + offset * page for offset in (-400, -20, -1, 0, 1, 20, 400)]
    assert [run(size) for size in sizes] == [5, 5, 5, 0, 0, 0, 0]


@pytest.mark.usefixtures("tried")
def test_a_disk_that_fills_up_while_it_trains_ends_in_exit_5_and_the_run_goes_on_where_there_is_room(make_stage_in, disk, tmp_path):
    """Whichever file of a checkpoint meets it: weights (safetensors), optimizer (torch), states and markers (JSON), figures, the output."""
    log, met, resumed = tmp_path / "log.txt", set(), []
    for number in (0, 2, 3, 5, 7):  # in the first weights, the first optimizer, the second weights, the second optimizer, the third
        resize(disk, f"{200 + 2700 * number}k")
        process = make_stage_in(disk, "sft", tag="one", rows=24, judge=None, eval_samples=0, epochs=1, save_every=1, own_tokens=True)
        code, last = run_here(process, log, asks_for_room=False), log.read_text().splitlines()[-1:]
        assert code in (0, 5) and "Traceback" not in log.read_text(), log.read_text()
        if code == 5:
            met.add(re.search(r"error: (\S+?): No space left on device; found [\d,]+ bytes free", last[0])[1].rpartition("/")[2])
            warnings = []
            whole = latest_complete(process.spec.checkpoint_dir, warn=warnings.append)
            assert warnings == []
            resize(disk, "80m")
            assert run_here(process, log) == 0, log.read_text()
            starts = [event["resumed_step"] for event in process.events() if event["event"] == "start"]
            assert starts[-1] == (whole[1] if whole else 0)
            resumed.append(starts[-1])
        subprocess.run(["rm", "-r", str(disk / "sft-one")], check=True)
    assert resumed == [0, 0, 1, 2, 2], met


def test_an_evaluation_asks_for_its_answers_and_does_not_begin_where_there_is_no_room_for_them(
    make_stage_in, disk, base_model_dir, fresh_reward_model
):
    from stages.evaluate.stage import main

    models = dict.fromkeys(("base", "sft", "ppo"), base_model_dir) | {"rm": fresh_reward_model}
    spec = make_stage_in(disk, "evaluate", models=models, own_tokens=True).spec
    for directory in (spec.output_dir, spec.checkpoint_dir):
        directory.mkdir()
    with pytest.raises(StageError, match=r"found [\d,]+ bytes free, needed ([\d,]+) for answers of at most .* free space, or") as refused:
        main(StageContext(spec))
    assert refused.value.exit_code == 5 and str(refused.value).startswith(f"{spec.checkpoint_dir}: ")
    assert not list(spec.checkpoint_dir.rglob("*.npz"))
    resize(disk, "200m")
    before = count_used(disk)
    main(StageContext(spec))
    needed = int(re.search(r"needed ([\d,]+)", str(refused.value))[1].replace(",", ""))
    assert 0 < count_used(disk) - before <= needed
