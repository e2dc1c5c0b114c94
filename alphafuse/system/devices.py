"""Choice of the devices that run encoders and heads, and of threads. torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alphafuse.errors import DeviceError

if TYPE_CHECKING:
    import torch

FEW_OPERATIONS = 1e8  # multiplications: milliseconds on one core
NO_CUDA = "this machine has no usable CUDA device: use --device cpu (or auto)"


def choose_device(device: str) -> torch.device:
    """Return the device for a device setting.

    Args:
        device: "auto" (CUDA if available, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: PyTorch does not know the device, or this machine has no CUDA device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"unknown device '{device}': choose from auto, cpu, cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(NO_CUDA)
    return chosen


def list_devices(device: str) -> tuple[str, ...]:
    """Split a device setting: "cuda:0,cuda:1" names two, "all" is every CUDA device of this machine, others are one.

    Raises:
        DeviceError: "all" without a CUDA device, or an empty name.
    """
    if device != "all":
        names = tuple(name.strip() for name in device.split(","))
        if not all(names):
            raise DeviceError(f"device '{device}' has an empty name: write it like cuda:0,cuda:1")
        return names
    import torch

    found = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if not found:
        raise DeviceError(NO_CUDA)
    return found


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Use one thread for products of few operations: several threads would wait for each other longer than they work.

    On a machine that others use, too, the difference is up to fifty times.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if operations < FEW_OPERATIONS else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
