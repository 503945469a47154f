"""The process in which a `GraderPool` judges hostile text: reads calls from a pipe, one JSON line each, answers them in order.

The parent keeps the time and kills. What stands here makes the rest harmless: memory is limited, files cannot be written,
processes and connections cannot be started, prints go nowhere, and a worker whose parent died ends at the end of its input,
or by the kernel's alarm where the call at hand never returns.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module

LOAD = -1
OUT_OF_MEMORY = 77
START_LIMIT_S = 120.0
ORPHAN_GRACE_S = 5.0
FORBIDDEN = ("subprocess.", "socket.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.")
FORBIDDEN += ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(time_limit_s: float, memory_limit_mib: int) -> None:
    requests, replies = private_pipes()
    limit_resources(memory_limit_mib)
    sys.addaudithook(refuse)
    function: Callable | None = None
    for line in requests:
        number, call = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, (START_LIMIT_S if number == LOAD else time_limit_s) + ORPHAN_GRACE_S)
        try:
            if number == LOAD:
                function, value = load(*call), None
            else:
                value = function(**call) if isinstance(call, dict) else function(*call)
            reply = json.dumps([number, True, value])
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except BaseException as error:
            reply = json.dumps([number, False, f"{type(error).__name__}: {str(error)[:300]}"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_all(replies, reply.encode() + b"\n")


def private_pipes():
    """The two ends of the parent's pipes under numbers of our own; the standard streams lead nowhere from here on."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return requests, replies


def limit_resources(memory_limit_mib: int) -> None:
    limits = {resource.RLIMIT_AS: memory_limit_mib * 2**20, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def refuse(event: str, arguments: tuple) -> None:
    """Audit hook: ends what a grader has no business doing."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if writes or event.startswith(FORBIDDEN):
        raise PermissionError(f"a grader may not do this: {event}")


def load(path: str, search: list[str]) -> Callable:
    """The function at `package.module:name`, which is looked for where the parent looks too."""
    sys.path += [folder for folder in search if folder not in sys.path]
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
