"""Forks a training job whenever it is told to, and sets the trap that kills it.

A line of standard input is an order: `{"argv": [...], "log": path, "trap": {...}}`. The
answer is the job's process id at once, and how it ended when it has. JAX is imported
but has no backend here, so a fork is a fresh process without the cost of the imports.

Traps, by "where":
  save: `delay` seconds after the `call`-th checkpoint begins to be saved.
  rename: in place of the `call`-th rename of a file or folder.
  result: when half of `result.json` is written.
  count: none; how many of each there are goes to the file `to`.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections import Counter

from experiments import files, train
from experiments.checkpoints import Checkpoints

SEEN: Counter[str] = Counter()


def die(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until the signal arrives


def trap(where, call=1, delay=0.0, to=None):
    """Puts the trap in place, in the job's own process."""
    save, write = Checkpoints.save, files.write_text

    def saving(self, saved):
        SEEN["save"] += 1
        if where == "save" and SEEN["save"] == call:
            threading.Timer(delay, die).start()
        return save(self, saved)

    def renaming(rename):
        def instead(*args, **keywords):
            SEEN["rename"] += 1
            if where == "rename" and SEEN["rename"] == call:
                die()
            return rename(*args, **keywords)

        return instead

    def writing(path, text):
        if where == "result" and path.name == "result.json":
            with files.replacing(path) as beside:
                beside.write_text(text[: len(text) // 2])
                die()
        return write(path, text)

    Checkpoints.save = saving
    files.write_text = writing
    os.rename, os.replace = renaming(os.rename), renaming(os.replace)
    if where == "count":
        return lambda: open(to, "w").write(json.dumps(SEEN))
    return lambda: None


def job(order):
    with open(order["log"], "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    tell = trap(**order["trap"]) if order["trap"] else lambda: None
    status = train.main(order["argv"])
    tell()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main():
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                status = job(json.loads(line))
            finally:
                os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    atexit.register(sys.stdout.flush)
    main()
