"""Ctrl-C and SIGTERM: neither is ever lost, and neither leaves a lock taken."""

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

WAIT_SECONDS = 0.2  # how long waiting for a task may delay an interrupt
RESEND_SECONDS = 0.05  # before a lost interrupt is sent again: the callback that lost it has ended by then


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; code that handles Ctrl-C handles it in the same way."""


def heed_interrupts() -> None:
    """Make SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt; lose neither. Call it in the main thread.

    Python raises both at whatever the main thread is running. If that is a callback of the interpreter, such as a weak
    reference's callback or a `__del__`, Python prints the exception, drops it, and the program continues. Such an
    interrupt is sent again.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if not isinstance(sys.unraisablehook, _ResendDropped):
        sys.unraisablehook = _ResendDropped(sys.unraisablehook)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Delay an interrupt until the end of the block, which should be short; a second interrupt is raised at once.

    Meant for calls of `concurrent.futures` in the main thread. They take locks in Python code; an exception between
    taking a lock and the `with` that releases it would leave the lock taken, and other threads would wait for ever.
    Interrupts reach the main thread only: in other threads the block does nothing.
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
                if callable(handler):  # otherwise the signal ends the process or is ignored
                    before[heeded] = handler
                    signal.signal(heeded, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        before[held[0]](held[0], None)


def submit(pool: Executor, function: Callable[..., Result], *arguments: object) -> Future[Result]:
    """`pool.submit`, safe against interrupts."""
    with hold_interrupts():
        return pool.submit(function, *arguments)


def wait_for_any(futures: Collection[Future[Result]], seconds: float = math.inf) -> set[Future[Result]]:
    """Wait until a future is done and return all that are done; {} after `seconds`. Safe against interrupts."""
    end = time.monotonic() + seconds
    while True:
        with hold_interrupts():
            done, _ = wait(futures, min(WAIT_SECONDS, max(0.0, end - time.monotonic())), FIRST_COMPLETED)
        if done or time.monotonic() >= end or not futures:
            return done


def map_in(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`pool.map`, safe against interrupts: submit all items at once, yield the results in the order of the items.

    The first failure is raised; items that have not started by then are cancelled.
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


class _ResendDropped:
    """A `sys.unraisablehook` that sends dropped interrupts again and hands all else to the previous hook."""

    def __init__(self, previous: Any) -> None:
        self._previous = previous

    def __call__(self, unraisable: Any, /) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
            _thread.start_new_thread(
                _send_again, (number,)
            )  # `threading` would take locks that the main thread may hold
        else:
            self._previous(unraisable)


def _send_again(number: signal.Signals) -> None:
    time.sleep(RESEND_SECONDS)
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)  # wakes the main thread if it waits
    else:
        _thread.interrupt_main(number)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
