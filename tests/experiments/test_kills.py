"""Jobs that are killed again and again end as the job that was let alone.

Dense, masked and shrunk runs of the digits, killed (SIGKILL) at random moments, inside
a save, in place of a rename and inside the writing of the results. Whatever was killed
is resumed until it ends; then the digests of all last checkpoints (parameters, masks
and optimizer) and all rows are those of the unbroken job, bit for bit, and no kill cost
more than a checkpoint interval.

`JPRUNE_KILLS=50 pytest tests/experiments/test_kills.py -m slow -s` says what it did.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EVERY = 2
"""Epochs between two checkpoints."""

JOB = [
    *("digits", "--only=gradual,swd_channels", "--set=batch=179"),
    *("--set=dense.epochs=8", f"--set=checkpoint_every={EVERY}"),
    *("--set=gradual.epochs=8", "--set=gradual.batch=179"),
    *("--set=gradual.sparsity=(0.9,)", "--set=swd_channels.epochs=8"),
    *("--set=swd_channels.tune_epochs=6", "--set=swd_channels.multiple=4"),
]
CLOCKS = {"ms", "dense ms", "dense over compact"}
"""Numbers of a row that a clock tells."""


class Forks:
    """The process that forks jobs; see `killing.py`."""

    def __init__(self, folder: Path):
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.log = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killing.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **cache, "PYTHONPATH": os.getcwd(), "XLA_FLAGS": ""},
        )

    def run(self, out, *, resume, trap=None, after=None):
        """One job: its exit status, -9 for a killed one, and its wall seconds."""
        argv = [*JOB, f"--out={out}", *(["--resume"] if resume else [])]
        order = {"argv": argv, "log": str(self.log), "trap": trap}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        clock, pid = time.monotonic(), int(self.process.stdout.readline())
        if after is not None:
            self._wait(pid, clock + after)
        status = int(self.process.stdout.readline())
        return status, time.monotonic() - clock

    def _wait(self, pid, until):
        """Kills the job at that moment, unless it ends before."""
        while time.monotonic() < until:
            if select.select([self.process.stdout], [], [], 0.01)[0]:
                return
        os.kill(pid, signal.SIGKILL)

    def close(self):
        self.process.communicate()


@pytest.fixture
def forks(tmp_path):
    found = Forks(tmp_path)
    yield found
    found.close()


def left(out):
    """What a finished job left: digest of each run's last checkpoint, and its rows."""
    digests = {}
    for run in (out / "checkpoints").iterdir():
        steps = [int(step.name) for step in run.iterdir() if step.name.isdigit()]
        (meta,) = (run / str(max(steps)) / "meta").iterdir()
        digests[run.name] = (max(steps), json.loads(meta.read_text())["digest"])
    result = json.loads((out / "result.json").read_text())
    for row in result["rows"]:
        del row["seconds"]
        extra = row["extra"] or {}
        row["extra"] = {k: v for k, v in extra.items() if k not in CLOCKS}
    return digests, result["rows"], result["claims"]


def epochs(out):
    """`(run, epoch)` of every whole line of the log."""
    log, found = out / "log.jsonl", []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "epoch" in entry:
            found.append((entry["run"], entry["epoch"]))
    return found


def lost(before, after):
    """Epochs that a kill made the job do again."""
    last, first = dict(before), dict(reversed(after[len(before) :]))
    return max([last[run] + 1 - first[run] for run in last if run in first] or [0])


def traps(chance, counts, seconds):
    """What kills the next job, and after how many seconds."""
    kind = chance.choice(["moment", "moment", "save", "rename", "result"])
    if kind == "moment":
        return kind, None, chance.uniform(0, seconds)
    if kind == "result":
        return kind, {"where": kind}, None
    call = chance.randint(1, counts[kind])
    return kind, {"where": kind, "call": call, "delay": chance.uniform(0, 0.1)}, None


def test_killed_jobs_end_as_the_unbroken_one(forks, tmp_path):
    wanted, chance = int(os.environ.get("JPRUNE_KILLS", "12")), random.Random(0)
    note = tmp_path / "counts.json"
    count = {"where": "count", "to": str(note)}
    assert forks.run(tmp_path / "whole", resume=False, trap=count)[0] == 0
    whole, counts = left(tmp_path / "whole"), json.loads(note.read_text())
    assert len(whole[0]) == 4 and len(whole[1]) == 3  # dense, masked, shrunk, tuned
    status, seconds = forks.run(tmp_path / "again", resume=False)
    assert status == 0 and left(tmp_path / "again") == whole

    kills: Counter[str] = Counter()
    repeated, jobs = [], 0
    while kills.total() < wanted:
        out, resume, jobs = tmp_path / f"job{jobs}", False, jobs + 1
        for attempt in range(100):
            before = epochs(out)
            quiet = kills.total() >= wanted or attempt >= 12
            kind, trap, after = traps(chance, counts, seconds)
            trap, after = (None, None) if quiet else (trap, after)
            status, _ = forks.run(out, resume=resume, trap=trap, after=after)
            if resume:
                repeated.append(lost(before, epochs(out)))
            assert status in (0, -9), forks.log.read_text()[-3000:]
            if status == 0:
                break
            kills[kind] += 1
            print(kills.total(), kind, flush=True)
            resume = (out / "config.json").exists()
        assert left(out) == whole
    print(f"\n{kills.total()} kills {dict(kills)} of {jobs} jobs, {seconds:.1f} s each")
    print(f"epochs done again, of {EVERY} in an interval: {Counter(repeated)}")
    assert max(repeated) <= EVERY
