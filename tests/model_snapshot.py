"""All that a call could change in a model, to be compared."""

import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(model):
    """All that a call could change: values, the objects that hold them, flags and hooks."""
    return {
        "values": {
            name: value.clone()
            for name, value in (*model.named_parameters(), *model.named_buffers())
        },
        "grads": {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        },
        "objects": [id(v) for v in (*model.parameters(), *model.buffers())],
        "versions": [v._version for v in (*model.parameters(), *model.buffers())],
        "flags": [
            (m.training, *(p.requires_grad for p in m.parameters())) for m in model.modules()
        ],
        "hooks": [len(getattr(m, name)) for m in model.modules() for name in HOOKS],
    }


def assert_same(before, after):
    assert before["values"].keys() == after["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    for name, grad in before["grads"].items():
        assert (
            grad is None
            if after["grads"][name] is None
            else torch.equal(grad, after["grads"][name])
        ), name
    for key in ("objects", "versions", "flags", "hooks"):
        assert before[key] == after[key]
