"""The server that prefect starts for a process which has none: it must end with that process.

Prefect stops it at the end of the interpreter. A process that is killed (out of memory, SIGTERM)
never gets there, and its server would run for ever.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_APPLICATION = "prefect.server.api.server:create_app"

# Its input ends when the process that holds the other end does, however that came about. psutil
# knows a process by its start time too, so another one with the same number is left alone.
_GUARD = """
import sys, psutil
servers = [psutil.Process(int(number)) for number in sys.argv[1:]]
if not sys.stdin.read():
    for server in servers:
        server.terminate()
"""


# Kept from being collected, which would close the pipe while the process still runs.
_armed: list[subprocess.Popen[str]] = []


@contextmanager
def ends_with_this_process() -> Iterator[None]:
    """See to it that an embedded server does not outlive this process; nothing if there is none."""
    servers = _embedded_servers()
    if not servers:
        yield
        return
    guard = subprocess.Popen(
        [sys.executable, "-c", _GUARD, *map(str, servers)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Not in our process group: Ctrl+C is for us, and we tell the guard.
        start_new_session=True,
    )
    try:
        yield
    except Exception:
        guard.communicate("done")
        raise
    except BaseException:
        # SIGTERM, which prefect turns into this, or Ctrl+C: the process is about to end.
        _armed.append(guard)
        raise
    guard.communicate("done")


def _embedded_servers() -> list[int]:
    found = []
    for child in psutil.Process().children():
        try:
            if _APPLICATION in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found
