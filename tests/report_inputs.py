"""Makes files such as the harness's commands leave behind, and reads the report on them."""

import json
import random

from harness.report import markdown, read, sections

METHODS = (
    "none",
    "mixup",
    "cutmix",
    "mixup-cutmix",
    "manifold",
    "saliencymix",
    "puzzlemix",
    "sage",
    "sage-no-rearrangement",
    "sage-random-translation",
    "sage-eval-saliency",
)
CONDITIONS = (
    ("clean", 0.0),
    *(("noise", std) for std in (0.05, 0.1, 0.2)),
    *(("replacement", share) for share in (0.1, 0.25, 0.5)),
    *((attack, epsilon) for attack in ("fgsm", "pgd") for epsilon in (2.0, 4.0, 8.0)),
)


def config(method, seed, dataset="glyphs", epochs=40, **mixing):
    """The settings of a run."""
    return {
        "method": method,
        "seed": seed,
        "model": "preactresnet8_cifar",
        "data": {"dataset": dataset, "train_size": 1000, "image_size": 32, "batch_size": 100},
        "schedule": {"epochs": epochs, "lr": 0.1},
        "mixing": {"alpha": None, "lambda_max": 0.5, "update_ratio": 1.0, **mixing},
        "channels_last": False,
    }


def result(method, seed, top1=50.0, **changes):
    """A line of results.jsonl, with a history whose last ten epochs were measured."""
    changes = {"step_ms": 100.0, "train_seconds": 300.0, **changes}
    settings = config(method, seed, **changes.pop("config", {}))
    epochs = settings["schedule"]["epochs"]
    measures = {"top1": top1, "top5": 90.0, "nll": 1.5, "ece": 5.0}
    history = [
        {
            "train_loss": 2.3 * 0.95**epoch,
            "step_ms": 100.0,
            "seconds": 2.0,
            **(measures if epoch >= epochs - 10 else {}),
        }
        for epoch in range(epochs)
    ]
    return {
        "method": method,
        "seed": seed,
        "dataset": settings["data"]["dataset"],
        "model": settings["model"],
        "epochs": epochs,
        "train_size": 1000,
        "validation_size": 2000,
        **measures,
        "train_loss": history[-1]["train_loss"],
        "device": "cpu, 1 thread(s)",
        "torch": "2.15.0",
        "timm": "1.0.31",
        "config": settings,
        "history": history,
        **changes,
    }


def failure(method, seed, error, **settings):
    """A line of failures.jsonl."""
    line = {"method": method, "seed": seed, "config": config(method, seed, **settings)}
    return {**line, "error": error, "traceback": f"Traceback ...\n{error}\n"}


def robustness(method, seed, kind, strength, top1, **settings):
    """A line of robustness.jsonl."""
    line = {"method": method, "seed": seed, "config": config(method, seed, **settings)}
    return {**line, "kind": kind, "strength": strength, "top1": top1, "images": 2000}


def benchmark(method, part, milliseconds, ratio=None, peak_memory_ratio=None, **facts):
    """A benchmark of overhead.json."""
    info = {
        "method": method,
        "part": part,
        "model": "preactresnet8_cifar",
        "batch_size": 100,
        "image_size": 32,
        "channels_last": True,
        "device": "cpu, 1 thread(s)",
        "milliseconds": milliseconds,
        "ratio": ratio,
        "peak_memory_ratio": peak_memory_ratio,
        **facts,
    }
    return {"name": f"test_{part}[{method}]", "stats": {"median": milliseconds}, "extra_info": info}


def few_shot_config(method, seed, learner="classifier", validation_episodes=600, **mixing):
    """The settings of a run of fewshot's."""
    settings = config(method, seed, dataset="fewshot/mini-imagenet", **mixing)
    validation = {"ways": 5, "shots": 1, "queries": 15, "episodes": validation_episodes, "seed": 0}
    return {**settings, "model": "cnn4", "learner": learner, "validation": validation}


def few_shot_result(method, seed, top1=50.0, settings=None, **changes):
    """A line that fewshot writes to results.jsonl: top1 is that of validation episodes."""
    line = result(method, seed, top1, best_epoch=30, **changes)
    for measures in (line, *line["history"]):
        for name in ("top5", "nll", "ece"):
            measures.pop(name, None)
    settings = settings or few_shot_config(method, seed)
    return {**line, "config": settings, "dataset": settings["data"]["dataset"], "model": "cnn4"}


def episodes(method, seed, correct, shots=1, settings=None, **changes):
    """A line of episodes.jsonl, of the correct answers in each episode."""
    line = {"ways": 5, "shots": shots, "queries": 15, "episodes": len(correct), "episode_seed": 0}
    line |= {"normalization": "cl2n", "classifier": "centroid", "data": "a1b2", **changes}
    shares = [100 * count / (line["ways"] * line["queries"]) for count in correct]
    return {
        "method": method,
        "seed": seed,
        "config": settings or few_shot_config(method, seed),
        "accuracy": sum(shares) / len(shares),
        "interval": 0.25,
        **line,
    }


def write_few_shot(directory, methods=METHODS, seeds=3, classifiers=("centroid", "logistic")):
    """Writes what fewshot leaves behind: results, and each network's answers in 1,000 episodes."""
    draw = random.Random(1)
    results, lines = [], []
    difficulty = [draw.gauss(0, 4) for _ in range(1_000)]
    for method in methods:
        level = draw.gauss(0, 1)
        for seed in range(seeds):
            results.append(few_shot_result(method, seed, 48 + level + draw.gauss(0, 0.5)))
            network = level + draw.gauss(0, 0.4)
            for classifier in classifiers:
                for shots, base in ((1, 34), (5, 49)):
                    correct = [round(base + network + d + draw.gauss(0, 3)) for d in difficulty]
                    lines.append(episodes(method, seed, correct, shots, classifier=classifier))
    write_lines(directory / "results.jsonl", results)
    write_lines(directory / "episodes.jsonl", lines)


def write_lines(path, lines):
    """Writes a file of one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_benchmarks(path, benchmarks):
    """Writes a file such as pytest-benchmark's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks}))


def write_all(directory):
    """Writes every input for eleven methods and three seeds; one run failed, two are missing."""
    draw = random.Random(0)
    runs = [(method, seed) for method in METHODS for seed in range(3)]
    absent = [("puzzlemix", 1), ("manifold", 2), ("sage-eval-saliency", 0)]
    done = [run for run in runs if run not in absent]
    level = {method: 50 + draw.gauss(0, 2) for method in METHODS}
    saliency = {method: 0.55 if method.startswith("sage") else 0 for method in METHODS}
    mixing = dict.fromkeys(METHODS, 0.004)
    mixing |= {method: draw.uniform(0.1, 1) for method in METHODS[5:]}
    cost = {method: 1 + saliency[method] + mixing[method] for method in METHODS}
    asked = [{"method": m, "seed": s, "config": config(m, s)} for m, s in runs]
    write_lines(directory / "runs.jsonl", asked)
    write_lines(
        directory / "results.jsonl", [_trained(m, s, level[m], cost[m], draw) for m, s in done]
    )
    error = f"ValueError: batch_size=100 is more than the 40 images in {'/long/path' * 30}"
    write_lines(directory / "failures.jsonl", [failure("puzzlemix", 1, error)])
    worse = {"clean": 0.0, "noise": 60.0, "replacement": 20.0, "fgsm": 3.0, "pgd": 5.0}
    write_lines(
        directory / "robustness.jsonl",
        [
            robustness(m, s, kind, strength, level[m] - worse[kind] * strength + draw.gauss(0, 1))
            for m, s in done
            for kind, strength in CONDITIONS
        ],
    )
    kept = {"foreground_kept_0": 60, "foreground_kept_1": 55, "foreground_kept_least": 30}
    write_lines(
        directory / "foreground.jsonl",
        [
            {"method": method, "seed": seed, "pairs": 1000}
            | {name: share + draw.gauss(0, 5) for name, share in kept.items()}
            for method, seed in done
        ],
    )
    steps = [benchmark(m, "step", 100 * c, c, draw.uniform(1, 1.2)) for m, c in cost.items()]
    parts = [
        benchmark(method, part, 100 * share)
        for part, shares in (("saliency", saliency), ("mixing", mixing))
        for method, share in shares.items()
        if share
    ]
    write_benchmarks(directory / "overhead.json", steps + parts)


def _trained(method, seed, level, cost, draw):
    """A result with some noise."""
    line = result(
        method,
        seed,
        top1=level + draw.gauss(0, 0.7),
        step_ms=100 * cost,
        train_seconds=240 * cost * draw.uniform(0.95, 1.05),
        top5=80 + draw.gauss(0, 1),
        nll=draw.uniform(1.3, 1.7),
        ece=draw.uniform(2, 9),
    )
    for epoch in line["history"]:
        epoch["train_loss"] *= draw.uniform(0.9, 1.1)
        if "top1" in epoch:
            epoch["top1"] += draw.gauss(0, 0.3)
    return line


def report(tmp_path, **files):
    """The Markdown of some lines, by the file that they stand in."""
    for name, lines in files.items():
        write_lines(tmp_path / f"{name}.jsonl", lines)
    return markdown(sections(read([tmp_path])), pictures=False)


def table(text, title):
    """The cells of a table by method and column."""
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}
