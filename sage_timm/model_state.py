"""What a model holds, put back after a pass: values, attributes, caches, hooks, random numbers.

A forward pass may write more than buffers: how far a table is filled, the state of a neuron, an
auxiliary loss in a list. All of it is part of the model, which a transform must leave as it was.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_ as _is
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
# Their objects are no part of a model, even where a module refers to one.
_FOREIGN = {
    *("torch", "torchvision", "numpy", "builtins", "logging", "threading", "multiprocessing"),
    *("concurrent", "asyncio", "weakref", "accelerate", "composer", "deepspeed", "fastai"),
    *(
        "enum",
        "ignite",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "tensorboard",
        "wandb",
    ),
    "sage_timm",
}
_KNOWN = (Tensor, nn.Parameter, nn.Buffer)
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
    """Notes what there is, and how to put it back.

    Args:
        roots: What to look into.
    """

    def __init__(self, roots: tuple[Any, ...]) -> None:
        self.roots = [root for root in roots if isinstance(root, nn.Module)]
        self._sharded = any(is_sharded(root) for root in self.roots)
        self._seen: set[int] = set()
        self._classes: set[type] = set()
        self._undo: list[Callable[[], Any]] = []
        self._empty: list[Any] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._buffers: list[dict[str, Tensor | None]] = []
        self._uncopied: list[tuple[Tensor, int]] = []
        self._devices: set[torch.device] = set()
        for root in roots:
            self._look_at(root, 0)
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
        for container in self._empty:
            if container:
                container.clear()
        for undo in self._undo:
            undo()
        for array, values in self._arrays:
            array[...] = values

    def check_uncopied(self) -> None:
        written = [tensor for tensor, version in self._uncopied if tensor._version > version]
        if written:
            named = (pair for root in self.roots for pair in root.named_parameters())
            name = next((repr(n) for n, p in named if p is written[0]), "or to a tensor in a graph")
            raise ValueError(
                f"the attached model's forward pass writes to its parameter {name}, and has done "
                "so for the saliency, which cannot be undone: make it a buffer, or a parameter "
                "with requires_grad=False"
            )

    def _look_at(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in _SIMPLE or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, nn.Module):
            self._note_module(value)
        elif isinstance(value, (dict, list, deque, set, bytearray)):
            self._note_container(value, depth)
        elif isinstance(value, (tuple, frozenset)):
            self._look_into(value, depth)
        elif isinstance(value, (FunctionType, MethodType, partial)):
            self._note_function(value, depth)
        elif isinstance(value, np.ndarray):
            self._seen.add(id(value))
            if value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif isinstance(value, torch.Generator):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._undo.append(partial(setattr, bits, "state", bits.state))
        # A data set or an optimiser of one's own is torch's by what it is derived from.
        elif depth < _DEPTH and not any(map(_foreign, kind.__mro__[:-1])):
            self._note_object(value, depth + 1)

    def _look_into(self, values: Any, depth: int) -> None:
        for value in values:
            if type(value) not in _SIMPLE:
                self._look_at(value, depth)

    def _note_module(self, module: nn.Module) -> None:
        self._seen.add(id(module))
        attributes = vars(module)
        self._undo.append(partial(_restore, attributes, dict(attributes)))
        if isinstance(module, torch.jit.ScriptModule):
            self._note_script(module)
            return
        for name, value in attributes.items():
            if type(value) in _SIMPLE:
                continue
            if name not in _INTERNAL:
                self._look_at(value, 0)
            elif not value:
                self._empty.append(value)
            # FSDP swaps parameters and sets hooks, and puts them back in its own time.
            elif not self._sharded or name in ("_buffers", "_modules"):
                self._note_container(value, 0)
        if module._buffers:
            self._buffers.append(module._buffers)
        self._note_class(type(module))

    def _note_class(self, kind: type) -> None:
        for above in kind.__mro__:
            if above in self._classes:
                continue
            self._classes.add(above)
            if not _foreign(above):
                for name, value in vars(above).items():
                    if isinstance(value, (dict, list, deque, set, Tensor, np.ndarray)):
                        self._look_at(value, 1)
                    elif name == "forward":
                        self._look_at(value, 0)

    def _note_script(self, module: nn.Module) -> None:
        """Looks at what TorchScript holds: there are no other attributes than tensors."""
        for below in module.modules():
            self._undo.append(partial(below.train, below.training))
            if below._buffers:
                buffers = below._buffers
                self._buffers.append(buffers)
                self._undo.append(partial(_put_all, buffers, dict(buffers.items())))
        self._look_into((*module.parameters(), *module.buffers()), 0)

    def _note_container(self, container: Any, depth: int) -> None:
        if not container:
            self._empty.append(container)
            return
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        self._undo.append(partial(_restore, container, _copied(container)))
        if len(container) > _LARGE or isinstance(container, bytearray):
            return
        self._look_into(container.values() if isinstance(container, dict) else container, depth)

    def _note_object(self, value: Any, depth: int) -> None:
        self._seen.add(id(value))
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            self._undo.append(partial(_restore, attributes, dict(attributes)))
            self._look_into(attributes.values(), depth)
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    slot = getattr(value, name, _MISSING)
                    self._undo.append(partial(_restore_slot, value, name, slot))
                    self._look_at(slot, depth)

    def _note_function(self, function: Any, depth: int) -> None:
        """Looks into what a hook knows: its object, its closure, and the globals that it names."""
        self._seen.add(id(function))
        if isinstance(function, partial):
            self._look_into((function.func, *function.args, *function.keywords.values()), depth)
            return
        if isinstance(function, MethodType):
            self._look_at(function.__self__, depth)
            function = function.__func__
        if not isinstance(function, FunctionType) or _foreign(function) or depth > _DEPTH:
            return
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # nothing has been put in yet
                continue
            self._undo.append(partial(setattr, cell, "cell_contents", value))
            self._look_at(value, depth + 1 if isinstance(value, FunctionType) else depth)
        named = function.__globals__
        for name in function.__code__.co_names:
            value = named.get(name, _MISSING)
            if value is not _MISSING and not isinstance(value, (type, ModuleType)):
                self._undo.append(partial(named.__setitem__, name, value))
                self._look_at(value, depth + 1)

    def _note_tensor(self, tensor: Tensor) -> None:
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
            self._undo.append(partial(_restore_parameter, tensor, tensor.grad, trained))
            if self._sharded:
                return
        memory = tensor.data
        if type(tensor) in _KNOWN:  # a pass may put other memory behind the tensor
            self._undo.append(partial(_restore_memory, tensor, memory, _place(tensor)))
        if trained or tensor.grad_fn is not None:  # a copy would cost as much as the network
            self._uncopied.append((tensor, tensor._version))
        elif _writable(tensor):
            self._arrays.append((memory, memory.clone()))

    def _note_random_numbers(self) -> None:
        self._undo.append(partial(random.setstate, random.getstate()))
        self._undo.append(partial(np.random.set_state, np.random.get_state()))
        self._undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
        for device in self._devices:
            if device.type in ("cuda", "xpu"):
                module = torch.get_device_module(device)
                state = module.get_rng_state(device)
                self._undo.append(partial(module.set_rng_state, state, device))
            elif device.type == "mps":
                self._undo.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))


_INTERNAL = frozenset(name for name, value in vars(nn.Module()).items() if hasattr(value, "clear"))


def _foreign(kind: Any) -> bool:
    return (getattr(kind, "__module__", None) or "builtins").split(".")[0] in _FOREIGN


def _writable(tensor: Tensor) -> bool:
    """Tells whether values can be put back: expanded memory refuses to be written."""
    if tensor.layout != torch.strided or tensor.is_inference():
        return False
    return not any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _copied(container: Any) -> Any:
    if isinstance(container, dict):
        return dict(container)
    return set(container) if isinstance(container, set) else list(container)


def _restore(container: Any, before: Any) -> None:
    """Puts back what was in a container, unless the very same things are in it."""
    if len(container) == len(before):
        if isinstance(container, dict):
            if all(map(_is, container, before)) and all(
                map(_is, container.values(), before.values())
            ):
                return
        elif isinstance(container, set):
            if container == before:
                return
        elif all(map(_is, container, before)):
            return
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(before)


def _put_all(mapping: Any, before: dict[str, Any]) -> None:
    for name, value in before.items():
        mapping[name] = value


def _restore_slot(value: Any, name: str, slot: Any) -> None:
    if getattr(value, name, _MISSING) is slot:
        return
    if slot is _MISSING:
        object.__delattr__(value, name)
    else:
        object.__setattr__(value, name, slot)


def _restore_parameter(parameter: nn.Parameter, grad: Tensor | None, trained: bool) -> None:
    if parameter.grad is not grad:
        parameter.grad = grad
    if parameter.requires_grad is not trained:
        parameter.requires_grad_(trained)


def _restore_memory(tensor: Tensor, memory: Tensor, place: tuple[Any, ...]) -> None:
    if _place(tensor) != place:
        tensor.data = memory
