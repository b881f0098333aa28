"""Leaves no trace of a pass through a model: all that the model holds is noted, and put back.

A forward pass may write more than buffers: how far a table is filled, the state of a neuron, an
auxiliary loss in a list. All of it is part of the model, which a transform must leave as it was.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_, setitem
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_DEPTH = 2  # how many objects deep a module is looked into
_LARGE = 10_000  # containers with more entries are put back, but not looked into
_SIMPLE = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type, slice, range, ModuleType),
        *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
    }
)
# Objects of these packages are no part of a model, even where a module refers to one.
_FOREIGN = frozenset(
    {
        *("builtins", "asyncio", "concurrent", "enum", "logging", "multiprocessing", "threading"),
        *("weakref", "numpy", "torch", "torchvision", "accelerate", "composer", "deepspeed"),
        *("fastai", "ignite", "lightning", "lightning_fabric", "pytorch_lightning", "tensorboard"),
        *("wandb", "sage_timm"),
    }
)
# The attributes in which nn.Module itself keeps parameters, buffers, modules and hooks.
_INTERNAL = frozenset(name for name, value in vars(nn.Module()).items() if hasattr(value, "clear"))
_MISSING = object()


def is_sharded(model: nn.Module) -> bool:
    """Tells whether FSDP shards the model, so that its passes wait for other processes."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())


@contextmanager
def as_before(*roots: Any) -> Iterator[None]:
    """Leaves what the roots hold, and the global streams of random numbers, as before the block.

    Of each module: parameters, buffers, all other attributes, flags and hooks; what is in its
    containers, arrays and tensors; the attributes of the objects that it holds, two deep; and what
    its hooks and its ``forward`` refer to outside of it. Of trained parameters, and of tensors in a
    graph, there is no copy: whether the block has written to one is seen by the versions that
    autograd counts.

    Args:
        roots: Modules; other objects and functions are looked into in the same way.

    Raises:
        ValueError: If a parameter has no value yet, or if the block has written to a trained one.
    """
    state = _State(roots)
    try:
        state.lend_buffers()
        yield
    except BaseException:
        state.put_back()
        raise
    state.put_back()
    state.check_uncopied()


class _State:
    """Walks through all that the roots hold, once, and notes how to put each thing back."""

    def __init__(self, roots: tuple[Any, ...]) -> None:
        self.roots = [root for root in roots if isinstance(root, nn.Module)]
        self._sharded = any(is_sharded(root) for root in self.roots)
        self._seen: set[Any] = set()  # ids of objects, and classes
        self._undo: list[Callable[[], Any]] = []
        self._empty: list[Any] = []  # containers: most of nn.Module's are, and are quick to check
        self._buffers: list[dict[str, Tensor | None]] = []
        self._uncopied: list[tuple[Tensor, int]] = []
        self._devices: set[torch.device] = set()
        self._visit_all(roots, 0)
        self._note_random_numbers()

    def lend_buffers(self) -> None:
        """Puts ``.data`` in the buffers' place: the same memory, whose changes autograd ignores.

        A loop may mix between another forward pass, whose graph holds the buffers, and its backward
        pass.
        """
        for buffers in self._buffers:
            for name, buffer in buffers.items():
                buffers[name] = None if buffer is None else buffer.data

    def put_back(self) -> None:
        """Puts all back; what was not changed stays the same object."""
        for container in self._empty:
            if container:
                container.clear()
        for undo in self._undo:
            undo()

    def check_uncopied(self) -> None:
        """Raises if a tensor was written to of which there is no copy."""
        written = [tensor for tensor, version in self._uncopied if tensor._version > version]
        if written:
            named = (pair for root in self.roots for pair in root.named_parameters())
            name = next((repr(n) for n, p in named if p is written[0]), "or to a tensor in a graph")
            raise ValueError(
                f"the attached model's forward pass writes to its parameter {name}, and has done "
                "so for the saliency, which cannot be undone: make it a buffer, or a parameter "
                "with requires_grad=False"
            )

    def _note(self, undo: Callable[..., Any], *args: Any) -> None:
        self._undo.append(partial(undo, *args))

    def _visit_all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            if type(value) not in _SIMPLE:
                self._visit(value, depth)

    def _visit(self, value: Any, depth: int) -> None:
        """Notes a value, and what it holds; ``depth`` is the number of objects above it."""
        kind = type(value)
        if kind in _SIMPLE or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._visit_tensor(value)
        elif isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, (dict, list, deque, set, bytearray)):
            self._visit_container(value, depth)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_all(value, depth)
        elif isinstance(value, (FunctionType, MethodType, partial)):
            self._visit_function(value, depth)
        elif isinstance(value, np.ndarray):
            self._seen.add(id(value))
            if value.flags.writeable:
                self._note(setitem, value, ..., value.copy())
        elif isinstance(value, (torch.Generator, np.random.RandomState)):
            self._note(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            self._note(value.setstate, value.getstate())
        elif isinstance(value, np.random.Generator):
            self._note(setattr, value.bit_generator, "state", value.bit_generator.state)
        # A data set or an optimiser of one's own is torch's by what it is derived from.
        elif depth < _DEPTH and not any(map(_is_foreign, kind.__mro__[:-1])):
            self._visit_object(value, depth + 1)

    def _visit_tensor(self, tensor: Tensor) -> None:
        self._seen.add(id(tensor))
        if is_lazy(tensor):
            raise ValueError(
                "the attached model has lazy parameters without a value, which the saliency pass "
                "would fix: run the model on one batch before the first call"
            )
        self._devices.add(tensor.device)
        trained = False
        if isinstance(tensor, nn.Parameter):
            trained = tensor.requires_grad
            self._note(_restore_attribute, tensor, "grad", tensor.grad)
            self._note(_restore_attribute, tensor, "requires_grad", trained)
            if self._sharded:
                return
        memory = tensor.data
        if type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
            self._note(_restore_memory, tensor, memory, _place(tensor))
        if trained or tensor.grad_fn is not None:  # a copy would cost as much as the network
            self._uncopied.append((tensor, tensor._version))
        elif _is_writable(tensor):
            self._note(setitem, memory, ..., memory.clone())

    def _visit_module(self, module: nn.Module) -> None:
        self._seen.add(id(module))
        attributes = vars(module)
        self._note(_restore, attributes, dict(attributes))
        if isinstance(module, torch.jit.ScriptModule):
            self._visit_script(module)
            return
        for name, value in attributes.items():
            if type(value) in _SIMPLE:
                continue
            if name not in _INTERNAL:
                self._visit(value, 0)
            elif not value:
                self._empty.append(value)
            # FSDP swaps parameters and sets hooks, and puts them back in its own time.
            elif not self._sharded or name in ("_buffers", "_modules"):
                self._visit_container(value, 0)
        if module._buffers:
            self._buffers.append(module._buffers)
        for kind in type(module).__mro__:
            if kind not in self._seen:
                self._visit_class(kind)

    def _visit_class(self, kind: type) -> None:
        """Looks at what all modules of a class share, and at what their ``forward`` refers to."""
        self._seen.add(kind)
        if _is_foreign(kind):
            return
        for name, value in vars(kind).items():
            if isinstance(value, (dict, list, deque, set, Tensor, np.ndarray)):
                self._visit(value, 1)
            elif name == "forward":
                self._visit(value, 0)

    def _visit_script(self, script: nn.Module) -> None:
        """Looks at what TorchScript holds: there are no other attributes than tensors."""
        for module in script.modules():
            self._note(module.train, module.training)
            if module._buffers:
                self._buffers.append(module._buffers)
                for name, buffer in module._buffers.items():
                    self._note(setitem, module._buffers, name, buffer)
        self._visit_all((*script.parameters(), *script.buffers()), 0)

    def _visit_container(self, container: Any, depth: int) -> None:
        if not container:
            self._empty.append(container)
        elif id(container) not in self._seen:
            self._seen.add(id(container))
            copied = next((k for k in (dict, set) if isinstance(container, k)), list)(container)
            self._note(_restore, container, copied)
            if len(container) <= _LARGE and not isinstance(container, bytearray):
                values = container.values() if isinstance(container, dict) else container
                self._visit_all(values, depth)

    def _visit_object(self, value: Any, depth: int) -> None:
        self._seen.add(id(value))
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            self._note(_restore, attributes, dict(attributes))
            self._visit_all(attributes.values(), depth)
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    slot = getattr(value, name, _MISSING)
                    self._note(_restore_attribute, value, name, slot)
                    self._visit(slot, depth)

    def _visit_function(self, function: Any, depth: int) -> None:
        """Looks at what a hook knows: its object, its closure, and the globals that it names."""
        self._seen.add(id(function))
        if isinstance(function, partial):
            self._visit_all((function.func, *function.args, *function.keywords.values()), depth)
            return
        if isinstance(function, MethodType):
            self._visit(function.__self__, depth)
            function = function.__func__
        if not isinstance(function, FunctionType) or _is_foreign(function) or depth > _DEPTH:
            return
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # nothing has been put in yet
                continue
            self._note(setattr, cell, "cell_contents", value)
            self._visit(value, depth + 1 if isinstance(value, FunctionType) else depth)
        named = function.__globals__
        for name in function.__code__.co_names:
            value = named.get(name, _MISSING)
            if value is not _MISSING and not isinstance(value, (type, ModuleType)):
                self._note(setitem, named, name, value)
                self._visit(value, depth + 1)

    def _note_random_numbers(self) -> None:
        self._note(random.setstate, random.getstate())
        self._note(np.random.set_state, np.random.get_state())
        self._note(torch.set_rng_state, torch.get_rng_state())
        for device in self._devices:
            if device.type in ("cuda", "xpu"):
                module = torch.get_device_module(device)
                self._note(module.set_rng_state, module.get_rng_state(device), device)
            elif device.type == "mps":
                self._note(torch.mps.set_rng_state, torch.mps.get_rng_state())


def _is_foreign(kind: Any) -> bool:
    return (getattr(kind, "__module__", None) or "builtins").split(".")[0] in _FOREIGN


def _is_writable(tensor: Tensor) -> bool:
    """Tells whether values can be put back: expanded memory refuses to be written."""
    if tensor.layout != torch.strided or tensor.is_inference():
        return False
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    return not any(stride == 0 and size > 1 for stride, size in sides)


def _restore(container: Any, before: Any) -> None:
    """Puts back what was in a container, unless the very same things are in it."""
    if isinstance(container, set):
        same = container == before
    else:
        same = len(container) == len(before) and all(map(is_, container, before))
        if same and isinstance(container, dict):
            same = all(map(is_, container.values(), before.values()))
    if not same:
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(before)


def _restore_attribute(owner: Any, name: str, before: Any) -> None:
    if getattr(owner, name, _MISSING) is before:
        return
    if before is _MISSING:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, before)


def _restore_memory(tensor: Tensor, memory: Tensor, place: tuple[Any, ...]) -> None:
    """Puts a tensor's own memory back behind it, if the pass has put other memory there."""
    if _place(tensor) != place:
        tensor.data = memory


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
