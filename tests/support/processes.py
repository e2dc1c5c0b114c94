"""Run functions of test modules in spawned processes, which can't import test modules: pickle them by value."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import cloudpickle

SPAWN = multiprocessing.get_context("spawn")


def spawned(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Return a process, not started yet, that calls the function; arguments may be connections."""
    module = sys.modules[function.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        pickled = cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return SPAWN.Process(target=_call, args=(pickled, arguments))


def _call(pickled: bytes, arguments: tuple[object, ...]) -> None:
    pickle.loads(pickled)(*arguments)
