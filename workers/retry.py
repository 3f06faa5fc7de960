"""Which errors may pass when a block is tried again."""

from __future__ import annotations

import errno
import random

from pipeline.errors import PipelineError

# Errors of the system that another moment may not have: a busy disk, a dropped connection.
_PASSING = {
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ESTALE,
}


def may_pass(error: BaseException) -> bool:
    """Whether to try again. Permanent kinds are looked at first, and unknown means permanent."""
    if isinstance(error, PipelineError | MemoryError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def delay_seconds(attempt: int) -> float:
    """Exponential backoff with jitter: about 0.2 s, 0.4 s, 0.8 s ..., at most 10 s."""
    return float(min(10.0, 0.2 * 2.0 ** min(attempt, 6)) * random.uniform(0.5, 1.5))
