"""What processes print comes into the log whole, in order, line by line, and without secrets."""

import errno
import os
import resource
import subprocess
import sys
import time

import pytest

from stages.process.output import open_log
from tests.waiting import wait_until

TOKEN = "canary-4711-canary"


@pytest.fixture
def log_of(tmp_path, monkeypatch):
    """A function: pieces of bytes, each written at once -> the log afterwards."""
    monkeypatch.setenv("MY_TOKEN", TOKEN)

    def log_of(*pieces, pause_s=0.0):
        with open_log(tmp_path / "log.txt", pytest.fail) as descriptor:
            for piece in pieces:
                os.write(descriptor, piece)
                time.sleep(pause_s)
        return (tmp_path / "log.txt").read_bytes()

    return log_of


def test_a_secret_is_blotted_out_in_whichever_pieces_its_line_comes(log_of):
    assert log_of(b"a canary-47", b"11-canary b\nno", b" end", pause_s=0.02) == b"a *** b\nno end"


def test_bytes_that_are_no_text_and_redrawn_lines_stay(log_of):
    content = b"10%\r20%\r\xff\xfe \xe6\x97\xa5\x00\n"
    assert log_of(content[:9], content[9:]) == content


def test_a_private_key_is_blotted_out_over_its_lines(log_of):
    begin, body, end = b"x\n-----BEGIN RSA PRIVATE KEY-----\n", b"MIIEowIBAAKCAQEA\n", b"-----END RSA PRIVATE KEY-----\ny\n"
    assert log_of(begin, body, body, end, pause_s=0.02) == b"x\n***\ny\n"
    assert log_of(begin, body).endswith(b"x\n***")


def test_a_line_that_does_not_end_is_seen_all_the_same(tmp_path):
    path = tmp_path / "log.txt"
    with open_log(path, pytest.fail) as descriptor:
        os.write(descriptor, b"waiting for the others...")
        wait_until(lambda: path.read_bytes() == b"waiting for the others...", 10)


def test_many_writers_and_thousands_of_lines_come_whole(tmp_path):
    program = "import os\nfor i in range(5_000): os.write(1, b'a line of the log, number %d\\n' % i)"  # whole: `print` writes in pieces
    with open_log(tmp_path / "log.txt", pytest.fail) as descriptor:
        writers = [subprocess.Popen([sys.executable, "-c", program], stdout=descriptor) for _ in range(2)]
        assert [writer.wait() for writer in writers] == [0, 0]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 10_000 and lines.count("a line of the log, number 4999") == 2


def test_a_full_disk_is_told_and_does_not_block_who_writes(tmp_path):
    told = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with open_log(tmp_path / "log.txt", told.append) as descriptor:
            for _ in range(200):
                os.write(descriptor, b"x" * 999 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told == [f"{tmp_path / 'log.txt'}: {os.strerror(errno.EFBIG)}; what was printed since then is not in it"]
    assert (tmp_path / "log.txt").stat().st_size == 1000


def test_what_a_process_prints_itself_is_redacted_tracebacks_too():
    program = f"""
import sys; from stages.process.output import redact_streams; redact_streams()
print("out", "{TOKEN}"); print("err {TOKEN}", file=sys.stderr); raise RuntimeError("in {TOKEN}")
"""
    environment = os.environ | {"MY_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "out ***\n" and "err ***\n" in done.stderr and "RuntimeError: in ***" in done.stderr
    assert "canary" not in done.stdout + done.stderr
