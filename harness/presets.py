"""Settings to start from: the paper's recipes, and one that two CPU cores can carry."""

from typing import Any

from harness.config import DataConfig, MethodConfig, ScheduleConfig

_PAPERS_SCHEDULE = ScheduleConfig(
    epochs=300, lr=0.2, weight_decay=1e-4, sched="multistep", decay_milestones=(100, 200)
)


def _papers(dataset: str, model: str, lambda_max: float, update_ratio: float) -> dict[str, Any]:
    return {
        "model": model,
        "data": DataConfig(dataset=f"torch/{dataset}", batch_size=100),
        "schedule": _PAPERS_SCHEDULE,
        "mixing": MethodConfig(lambda_max=lambda_max, update_ratio=update_ratio, search="random"),
    }


PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-preactresnet18": _papers("cifar10", "preactresnet18_cifar", 0.6, 0.7),
    "cifar100-preactresnet18": _papers("cifar100", "preactresnet18_cifar", 0.5, 0.7),
    "cifar100-wrn16-8": _papers("cifar100", "wrn16_8_cifar", 0.7, 0.5),
    "cifar100-resnext29-4-24": _papers("cifar100", "resnext29_4_24_cifar", 0.7, 0.5),
    "cpu": {
        "model": "preactresnet8_cifar",
        "data": DataConfig(dataset="torch/cifar10", train_size=1000),
        "schedule": ScheduleConfig(epochs=160),
        "channels_last": True,
    },
}
"""For each name, values of the settings that the commands have in common.

The first four are the paper's (Ma et al., BMVC 2022, and the authors' public implementation): 300
epochs of SGD with Nesterov momentum, learning rate 0.2 and a tenth of it from epochs 100 and 200
on, weight decay 1e-4, batches of 100, and each network's largest weight and update ratio. ``cpu``
trains a small network on 1,000 images of CIFAR-10 until it fits them: some ten minutes a run.
"""
