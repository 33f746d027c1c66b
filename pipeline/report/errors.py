"""An error as people see it on stderr: one line each, and the exit code of the command."""

import errno
import sys
from dataclasses import replace

from data.schema import DataError
from data.system.limits import describe_exhausted
from pipeline.errors import ConfigError, SlurmError, StoppedAfterStage, StoreError, escape_controls
from pipeline.launch.failure import StageFailed
from pipeline.pasted import complete
from pipeline.text import clean
from stages.spec import EXIT_RESOURCE, EXIT_USAGE


def print_error(error: Exception) -> int:
    """Print a known error and return its exit code.

    Raises:
        Exception: the error itself where it is a bug, which keeps its traceback.
    """
    match error:
        case ConfigError():
            _say(str(error))
            return EXIT_USAGE
        case DataError():
            _say(str(DataError([replace(problem, where=escape_controls(problem.where)) for problem in error.problems])))
            return EXIT_USAGE
        case StoreError():
            _say(error.message)
            return error.exit_code
        case SlurmError():
            _say(str(error))
            return error.exit_code
        case StageFailed():
            for line in [] if error.interrupted else error.last_lines:
                _say(f"  | {line}")
            _say(f"error: {error}")
            if error.log_path is not None:
                _say(f"log: {error.log_path}")
            if error.next_run:
                _say(error.next_run)
            return error.exit_code
        case StoppedAfterStage():
            _say(f"{error}; the same command goes on with the next stage")
            return error.exit_code
        case OSError() if error.errno in (errno.EACCES, errno.EPERM):  # of files that are read, too: data, a base model
            _say(f"{error.filename or 'disk'}: {error.strerror}; permission is needed; change its mode or owner, or give another path")
            return EXIT_RESOURCE
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            needed = "a disk that can be written" if error.errno == errno.EROFS else "free space"
            _say(f"{error.filename or 'disk'}: {error.strerror}; {needed} is needed; choose another --store")
            return EXIT_RESOURCE
        case OSError() if error.errno in (errno.EFBIG, errno.EIO, errno.ESTALE):
            needed = "a disk that answers and takes files of this size is needed; check it, and `ulimit -f`"
            _say(f"{error.filename or 'disk'}: {error.strerror}; {needed}, or choose another --store")
            return EXIT_RESOURCE
        case OSError() if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            _say(f"{error.filename or 'a path'}: {error.strerror}; a path that the system can open is needed; give another")
            return EXIT_USAGE
        case _ if exhausted := describe_exhausted(error):
            _say(f"{error}: {exhausted}")
            return EXIT_RESOURCE
        case _:
            raise error


def _say(text: str) -> None:
    print("\n".join(clean(line) for line in complete(text).split("\n")), file=sys.stderr)
