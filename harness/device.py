"""The device that a run computes on: whether it is there, its name, its types and its time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import timm
import torch

Value = TypeVar("Value")


def open_device(name: str) -> torch.device:
    """Finds a device; raises a ValueError if it is not there, or cannot compute."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={name!r} is not there: {reason}") from error
    return device


def from_first(value: Value, devices: int) -> Value:
    """Returns the first process's value to all of them."""
    box = [value]
    if devices > 1:
        torch.distributed.broadcast_object_list(box)
    return box[0]


def device_name(device: torch.device) -> str:
    """Names the accelerator, or the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread(s)"


def made_with(device: torch.device) -> dict[str, str]:
    """Names the device and the versions that a figure was made with."""
    return {"device": device_name(device), "torch": torch.__version__, "timm": timm.__version__}


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """Makes a context that computes in a type where that is safe; ``"none"`` changes nothing."""
    dtype = None if amp == "none" else getattr(torch, amp)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def timed(times: list[float], device: torch.device) -> Iterator[None]:
    """Appends the milliseconds that a block took."""
    if device.type != "cuda":
        started = time.perf_counter()
        yield
        times.append(1000 * (time.perf_counter() - started))
        return
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    yield
    end.record()
    end.synchronize()
    times.append(start.elapsed_time(end))
