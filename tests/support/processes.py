"""Functions of test modules in spawned processes, which can't import test modules: they travel by value."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import cloudpickle

SPAWN = multiprocessing.get_context("spawn")


def spawned(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process, not started yet, that calls the function; connections among the arguments work."""
    module = sys.modules[function.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        travelling = cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return SPAWN.Process(target=_call, args=(travelling, arguments))


def _call(travelling: bytes, arguments: tuple[object, ...]) -> None:
    pickle.loads(travelling)(*arguments)
