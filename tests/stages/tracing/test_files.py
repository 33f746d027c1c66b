"""How fast weights go into a file and out of it."""

import os
import resource
import subprocess
import sys
import tempfile

from stages.tracing import files
from stages.tracing.files import measure_files


def test_reading_and_writing_take_their_time_by_bytes_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read_s, write_s = measure_files()
    assert 1e-11 < read_s < 1e-7 and 1e-11 < write_s < 1e-7  # 10 MB/s to 100 GB/s
    assert not list(tmp_path.iterdir())


def test_the_median_of_what_computes_between_is_divided_by_the_bytes_of_the_sample(monkeypatch):
    took_s = [9.0, 1.0, 3.0, 0.5, 2.0, 8.0]  # written, read; the first time and the last are disturbed
    clock = iter([moment for s in took_s for moment in (10.0, 10.0 + s)])
    monkeypatch.setattr(files, "_SAMPLE", 1000)
    monkeypatch.setattr(files.time, "process_time", lambda: next(clock))
    assert measure_files() == (0.001, 0.003)


def test_where_there_is_no_room_for_the_sample_nothing_is_measured_and_the_plan_goes_on(tmp_path):
    script = "from stages.tracing.files import measure_files; print(measure_files())"
    limit = (2**20, 2**20)  # of a file's size: what a temporary directory of a MiB would refuse
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("(0.0, 0.0)\n", 0), done.stderr
    assert not list(tmp_path.iterdir())
