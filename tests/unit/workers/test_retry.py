import errno
import random

import pytest

from pipeline.errors import BlockError, ConfigError, DataError, InputError, OutputExistsError
from workers.retry import delay_seconds, may_pass


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset"),
        ConnectionRefusedError(),
        BrokenPipeError(),
        TimeoutError("no answer"),
        OSError(errno.EIO, "input/output error"),
        OSError(errno.EAGAIN, "again"),
        OSError(errno.ESTALE, "stale file handle"),
        OSError(errno.EBUSY, "busy"),
        OSError(errno.ENETUNREACH, "network is unreachable"),
    ],
    ids=repr,
)
def test_what_another_moment_may_not_have_is_tried_again(error):
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("missing"),
        ZeroDivisionError(),
        MemoryError(),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PermissionError(errno.EACCES, "denied"),
        OSError("without a number"),
        OSError(errno.ENOSPC, "no space left"),
        OSError(errno.EROFS, "read-only"),
        OSError(errno.EMFILE, "too many open files"),
        InputError("bad input"),
        ConfigError("bad configuration"),
        DataError("NaN"),
        BlockError("failed"),
        # Also a FileExistsError: its permanent kind is looked at first.
        OutputExistsError("there"),
    ],
    ids=repr,
)
def test_the_permanent_and_the_unknown_are_not(error):
    assert not may_pass(error)


def test_a_permanent_error_that_passing_ones_caused_stays_permanent():
    error = DataError("cannot read")
    error.__cause__ = ConnectionError("reset")
    assert not may_pass(error)


def test_the_wait_doubles_with_jitter_and_has_a_bound():
    random.seed(1)
    for attempt in range(40):
        nominal = min(10.0, 0.2 * 2**attempt)
        waits = [delay_seconds(attempt) for _ in range(50)]
        assert all(0.5 * nominal <= wait <= 1.5 * nominal for wait in waits)
        assert len(set(waits)) > 1, "equal waits would let all blocks come back at once"
    assert delay_seconds(10**4) <= 15.0
