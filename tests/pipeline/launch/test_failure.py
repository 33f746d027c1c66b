import re
import subprocess
import sys

import pytest

from pipeline.launch.failure import End, blame_environment, describe_failure, last_lines


def test_the_tail_of_a_huge_log_is_read_without_the_rest(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("x" * 10_000_000 + "\nlast\n")
    assert last_lines(path)[-1] == "last"
    assert last_lines(tmp_path / "missing") == []


def test_an_error_that_could_only_be_printed_is_the_message(tmp_path):
    """On a full disk no event can be written."""
    path, ends = tmp_path / "log.txt", [End(None, 5, True)]
    path.write_text(
        "$ python -m stages.sft\nerror: /store: No space left on device\nthe error could not be written to the event log either\n"
    )
    assert str(describe_failure("sft", ends, None, None, path, 0)) == "sft: /store: No space left on device"
    failure = describe_failure("sft", ends, None, None, path, path.stat().st_size)  # another attempt's, which this one adds nothing to
    assert (str(failure), failure.exit_code) == ("sft: ended with exit code 5", 5)


def test_a_process_that_the_kernel_killed_for_want_of_memory_is_told_with_how_much_there_is(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("begin\n")

    def tell(*, out_of_memory=True):
        return str(describe_failure("sft", [End(None, -9, True)], None, None, path, 0, out_of_memory=out_of_memory))

    ran_out = "killed by SIGKILL, as the memory ran out, of which"
    assert re.fullmatch(f"sft: {ran_out} [0-9.]+ [GT]B may be used here: lower sft.micro_batch_size", tell())
    assert "if you did not" in tell(out_of_memory=False)
    path.write_text("Root Cause (first observed failure):\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n")
    assert f"rank 1 was {ran_out}" in tell()


@pytest.mark.parametrize(("name", "value"), [("TORCH_LOGS", "garbage"), ("HF_HUB_ETAG_TIMEOUT", "soon")])
def test_a_variable_with_which_a_library_cannot_be_imported_is_named(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    library = {"TORCH_LOGS": "torch", "HF_HUB_ETAG_TIMEOUT": "huggingface_hub.constants"}[name]
    ended = subprocess.run([sys.executable, "-P", "-c", f"import {library}"], capture_output=True, text=True)
    path, ends = tmp_path / "log.txt", [End(None, ended.returncode, True)]
    path.write_text(ended.stderr)
    failure = describe_failure("data", ends, None, None, path, 0)
    assert str(failure).startswith(f"data: {name}: found '{value}' in the environment, of which a library's own traceback speaks")
    assert str(failure).endswith("; unset it") and failure.exit_code == 2
    assert str(describe_failure("data", ends, None, {"message": "ours"}, path, 0)) == "data: ours"  # what a stage says itself goes before
    monkeypatch.delenv(name)
    assert str(describe_failure("data", ends, None, None, path, 0)) == "data: ended with exit code 1"


def test_a_variable_whose_value_is_secret_is_named_without_it(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "canary-4711-canary")
    trace = 'Traceback (most recent call last):\n  File "p.py", line 1, in <module>\n    import x\n'
    told = blame_environment(trace + '  File "x.py", line 3, in <module>\n    int(os.environ["MY_SERVICE_TOKEN"])\n')
    assert told.startswith("MY_SERVICE_TOKEN: found a value in the environment") and "canary" not in told
    assert blame_environment("no MY_SERVICE_TOKEN in a traceback") is None


def test_a_variable_that_a_traceback_only_advises_to_set_is_not_blamed(monkeypatch, tmp_path):
    """Of a GPU whose memory is full torch says so, while `rlhf chat` answers."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    advice = "torch.OutOfMemoryError: CUDA out of memory. Try setting PYTORCH_ALLOC_CONF=expandable_segments:True."
    program = tmp_path / "program.py"
    program.write_text(f"import torch\n\ndef answer():\n    raise torch.OutOfMemoryError({advice!r})\n\nanswer()\n")
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert "PYTORCH_ALLOC_CONF" in ended.stderr and ended.returncode == 1
    assert blame_environment(ended.stderr) is None
