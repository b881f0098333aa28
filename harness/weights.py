"""The weights that a training starts from: timm's published ones, or those of a checkpoint."""

import functools
import hashlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn
from tqdm import tqdm

import harness.models  # noqa: F401  (registers the networks with timm)
from harness.config import expanded

_COUNTER = "num_batches_tracked"  # batch norm's, which does not matter and is not always kept
_NAMED_AT_MOST = 4


@dataclass(frozen=True)
class InitialWeights:
    """Weights by name, and where they are from."""

    source: str
    state: Mapping[str, Tensor] = field(repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen digits that the same weights have wherever they are from."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state.items()):
            if not name.endswith(_COUNTER):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                data = value.detach().contiguous().reshape(-1).view(torch.uint8)
                digest.update(data.numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def from_file(cls, path: Path) -> "InitialWeights":
        """Reads a checkpoint as timm does, the averaged weights where it has some.

        Raises a ValueError if it cannot be read or holds something else.
        """
        path = expanded(path)
        source = f"initial_checkpoint={str(path)!r}"
        if not path.is_file():
            raise ValueError(f"{source} is no file")
        return _read(path, source, path.stat().st_mtime_ns)

    @classmethod
    @functools.cache
    def from_timm(cls, model: str) -> "InitialWeights":
        """Gets the published weights of a network of timm's; raises a ValueError if it cannot."""
        hub = logging.getLogger("huggingface_hub")
        level = hub.level
        hub.setLevel(logging.ERROR)  # the error below is one line, each of its retries is three
        try:
            with torch.random.fork_rng():
                network = timm.create_model(model, pretrained=True)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"pretrained=True cannot get timm's weights of model={model!r}; name a file of "
                f"weights with initial_checkpoint instead: {reason}"
            ) from error
        finally:
            hub.setLevel(level)
        return cls(f"model={model!r}, pretrained=True", network.state_dict())

    def load_into(self, network: nn.Module) -> None:
        """Loads the weights into a network of timm's face.

        As in timm, the first convolution is adapted to the images' channels, and a head of another
        size is left out, which a line on stderr says once. Raises a ValueError that names whatever
        else does not fit.
        """
        state, own = dict(self.state), network.state_dict()
        heads = _heads(network)
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if convert is not None and _misfits(state, own, heads):
            state = convert(state, network)
        for name in _first_convolutions(network):
            if name in state and state[name].shape[1:2] != own[name].shape[1:2]:
                state[name] = adapt_input_conv(own[name].shape[1], state[name])
        misfits = _misfits(state, own, heads)
        if misfits:
            rest = len(misfits) - _NAMED_AT_MOST
            more = [f"{rest} more"] if rest > 0 else []
            raise ValueError(
                f"{self.source} does not fit the network: "
                + ", ".join(misfits[:_NAMED_AT_MOST] + more)
            )
        for head in heads:
            names = [name for name in {**own, **state} if name.startswith(head)]
            if any(_shape(state, name) != _shape(own, name) for name in names):
                _say(f"{self.source}: the head is of another size, starts anew: {', '.join(names)}")
                state = {name: value for name, value in state.items() if name not in names}
        network.load_state_dict(state, strict=False)


@functools.lru_cache(maxsize=1)
def _read(path: Path, source: str, _changed: int) -> InitialWeights:
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # a broken file can make torch.load raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{source} cannot be read as a checkpoint: {reason}") from error
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other or not state:
        raise ValueError(
            f"{source} must hold tensors by name, as a network's state_dict() does, got "
            f"{', '.join(other[:_NAMED_AT_MOST]) or 'nothing'}"
        )
    return InitialWeights(source, state)


def _heads(network: nn.Module) -> list[str]:
    """Names the network's classifiers, with a dot at the end; some networks have two."""
    found = network.get_classifier()  # type: ignore[operator]
    classifiers = found if isinstance(found, tuple) else (found,)
    named = network.named_modules()
    return [f"{name}." for name, module in named if any(module is one for one in classifiers)]


def _first_convolutions(network: nn.Module) -> list[str]:
    """Names the weights that see an image's channels, as far as timm knows them."""
    known = network.pretrained_cfg.get("first_conv") or ()  # type: ignore[union-attr, operator]
    return [f"{name}.weight" for name in ((known,) if isinstance(known, str) else known)]


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: list[str]) -> list[str]:
    """Says in words what does not fit, but for the heads and the counters of batch norm."""
    misfits = []
    for name in {**own, **state}:
        found, wanted = _shape(state, name), _shape(own, name)
        if found != wanted and not name.startswith(tuple(heads)) and not name.endswith(_COUNTER):
            misfits.append(f"{name} is {found or 'missing'}, not {wanted or 'of the network'}")
    return misfits


def _shape(state: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


@functools.cache
def _say(what: str) -> None:
    tqdm.write(what, file=sys.stderr)
