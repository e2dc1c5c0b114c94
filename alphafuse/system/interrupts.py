"""Ctrl-C and SIGTERM: exceptions of the main thread that are never lost, and leave no lock taken."""

from __future__ import annotations

import _thread
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WAIT_SECONDS = 0.2  # for a task, until an interrupt that was held back meanwhile is raised
AGAIN_SECONDS = 0.05  # until an interrupt that was lost is sent again: the callback that lost it is over by then


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever deals with a Ctrl-C deals with it in the same way."""


def heed_interrupts() -> None:
    """Let SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt, and lose neither; call it in the main thread.

    Python raises them wherever the main thread is. Where that is a callback of the interpreter's own, such as a weak
    reference's or a `__del__`, the exception has nowhere to go: it would be printed, and the program would go on.
    Such an interrupt is sent again.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let an interrupt wait for the end of the block, which should be over soon; a second one waits no more.

    For calls of `concurrent.futures` in the main thread: these take locks in Python code, and an exception between
    the taking and the `with` that gives back would leave one taken, for which other threads then wait for ever. In
    other threads, which no interrupt reaches, the block is like any.
    """
    held: list[int] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            before[number](number, frame)

    try:
        if threading.current_thread() is threading.main_thread():
            for heeded in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(heeded)
                if callable(handler):  # else the process ends by the signal, or never minds it
                    before[heeded] = handler
                    signal.signal(heeded, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        before[held[0]](held[0], None)


def submit(pool: Executor, function: Callable[..., Result], *arguments: object) -> Future[Result]:
    """`pool.submit`, in which an interrupt does no harm."""
    with hold_interrupts():
        return pool.submit(function, *arguments)


def wait_for_any(futures: Collection[Future[Result]], seconds: float = math.inf) -> set[Future[Result]]:
    """Those that are done, as soon as one is; none of them after so many seconds. An interrupt does no harm in it."""
    end = time.monotonic() + seconds
    while True:
        with hold_interrupts():
            done, _ = wait(futures, min(WAIT_SECONDS, max(0.0, end - time.monotonic())), FIRST_COMPLETED)
        if done or time.monotonic() >= end or not futures:
            return done


def map_in(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`pool.map`, in which an interrupt does no harm: all items are begun at once, the results come in their order.

    The first failure is raised, and what is not begun then is left undone.
    """
    futures = [submit(pool, function, item) for item in items]
    try:
        for future in futures:
            wait_for_any([future])
            yield future.result()
    finally:
        with hold_interrupts():
            for future in futures:
                future.cancel()


class _Hook:
    """What Python calls with an exception that has nowhere to go."""

    def __init__(self, others: Any) -> None:
        self._others = others

    def __call__(self, unraisable: Any, /) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
            _thread.start_new_thread(_send_again, (number,))  # `threading` takes locks, which the main thread may hold
        else:
            self._others(unraisable)


def _send_again(number: signal.Signals) -> None:
    time.sleep(AGAIN_SECONDS)
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)  # wakes the main thread where it waits
    else:
        _thread.interrupt_main(number)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
