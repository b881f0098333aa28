from harness.report import tables


def line(method, seed, top1, model="net"):
    return {
        "method": method,
        "seed": seed,
        "dataset": "folder",
        "model": model,
        "epochs": 3,
        "train_size": 100,
        "validation_size": 50,
        "top1": top1,
        "train_loss": 0.5,
        "step_ms": 10.0 + seed,
        "config": {"method": method, "seed": seed, "model": model},
    }


def test_means_and_spread_over_the_seeds_and_differences_seed_by_seed():
    results = [line("mixup", seed, 50.0 + 10 * seed) for seed in range(3)]
    results += [line("sage", seed, 51.0 + 11 * seed) for seed in range(3)]
    results += [line("none", 0, 40.0)]
    rows = tables(results).splitlines()
    assert rows[0] == "folder, 100 training images, 50 to measure on, net, 3 epochs"
    # By hand: 50, 60, 70 have mean 60 and deviation 10; 1, 2, 3 have mean 2 and deviation 1.
    assert rows[4:] == [
        "| mixup | 0 1 2 | 60.00 ± 10.00 | - | 0.50 ± 0.00 | 11 |",
        "| sage | 0 1 2 | 62.00 ± 11.00 | +2.00 ± 1.00 | 0.50 ± 0.00 | 11 |",
        "| none | 0 | 40.00 | -10.00 | 0.50 | 10 |",
    ]


def test_each_setting_has_a_table_of_its_own():
    text = tables([line("none", 0, 1.0), line("none", 0, 2.0, model="other")])
    assert [
        part.splitlines()[0].split(", ")[3] for part in text.split("\n\n") if "folder" in part
    ] == [
        "net",
        "other",
    ]
