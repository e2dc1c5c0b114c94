"""Interrupts at moments when they could be lost or leave a lock taken are delayed, then raised."""

import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest
from support.clips import THOROUGH

from alphafuse.system.interrupts import hold_interrupts

# Raise an interrupt at every point where Python checks for one in the libraries that take locks (at a function's start,
# after a C function's return), one per run of a pool. The main thread must receive each, and no thread may deadlock.
EVERYWHERE = """
import concurrent.futures, faulthandler, signal, sys, threading, time
import loky.process_executor
import torch
from concurrent.futures import ThreadPoolExecutor
from alphafuse.system.interrupts import map_in
from alphafuse.extract.engines.embedder import Embedder
from alphafuse.system.workers import TaskPool

CODE = (concurrent.futures.__path__[0], threading.__file__, loky.__path__[0])

def interrupted(run, at):
    left = at
    def look(frame, event, argument):
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(CODE):
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
    try:
        sys.setprofile(look)
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    assert left > 0, f"the interrupt at step {at} was lost"
    return False

class Pool(Embedder):
    def __init__(self):
        self.threads, self.batch_size, self.device = 2, 1, torch.device("cpu")
    def decode(self, jobs):
        yield from jobs

def threads():
    list(Pool().map(lambda batch: time.sleep(0.001), range(4)))

def mapped():
    with ThreadPoolExecutor(2) as pool:
        assert list(map_in(pool, lambda item: time.sleep(0.001 * (item % 2)) or item, range(4))) == [0, 1, 2, 3]

def processes():
    with TaskPool(abs, failed=str, workers=1) as pool:
        assert len(list(pool.map((i, -i) for i in range(2)))) == 2

if __name__ == "__main__":
    run, step = globals()[sys.argv[1]], int(sys.argv[2])
    run()
    for count in range(2000):
        faulthandler.dump_traceback_later(30, exit=True)
        if not interrupted(run, 1 + count * step):
            break
        faulthandler.cancel_dump_traceback_later()
    print(count)
"""


@pytest.mark.parametrize(
    ("pool", "step", "least"),
    [("threads", 1, 200), ("mapped", 1, 150), ("processes", 23, 15) if THOROUGH else ("processes", 71, 5)],
)
@pytest.mark.slow
def test_an_interrupt_at_any_moment_ends_a_pool(pool: str, step: int, least: int) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", EVERYWHERE, pool, str(step)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= least


def test_an_interrupt_waits_for_the_end_of_the_block_and_a_second_one_does_not() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), hold_interrupts(), hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
    assert reached == ["after the first"]
    with pytest.raises(KeyboardInterrupt), hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_callers_own_are_called_and_kept() -> None:
    calls = []

    def handle(number: int, frame: FrameType | None) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        with hold_interrupts():
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
        assert calls == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is handle
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with hold_interrupts():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the default handler ends the process"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_do_not_delay_interrupts() -> None:
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_interrupts():
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    over.set()
    thread.join()
