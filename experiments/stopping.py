"""Leaving when asked: SIGTERM, SIGHUP or Ctrl-C ends the step, saves, and goes.

A scheduler gives a job some seconds between SIGTERM and the end. The handler only
notes the wish; the training loop reads it between two compiled calls. A second signal
is obeyed at once, but for SIGHUP: a terminal that closes may send it twice. Under
`nohup` it stays ignored.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

import jax

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_wish: list[int] = []
_calls = count()


class Stopped(Exception):
    """The job was asked to leave, and has saved."""


@contextmanager
def listening() -> Iterator[None]:
    """Within it a first SIGTERM, SIGINT or SIGHUP is a wish, and a second an end."""
    alone = jax.process_count() == 1  # JAX itself listens for several processes
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    held = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = _SIGNALS if held else (*_SIGNALS, signal.SIGHUP)
    old = {number: signal.signal(number, _note) for number in heard}
    try:
        yield
    finally:
        _wish.clear()
        for number, handler in old.items():
            signal.signal(number, handler)


def wanted() -> bool:
    """Whether to leave now; several processes leave after the same call of this."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(next(_calls))
    return bool(_wish)


def _note(number: int, frame: FrameType | None) -> None:
    if _wish and number != signal.SIGHUP:
        raise KeyboardInterrupt
    _wish.append(number)
