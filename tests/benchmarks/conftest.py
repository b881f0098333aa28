"""Times a call on a batch, and prints what pytest-benchmark has no column for."""

import pytest


@pytest.fixture
def time_batch(benchmark, record_property):
    """Times calls on a batch, and notes the median's milliseconds an image."""

    def time_calls(call, images):
        benchmark.pedantic(call, rounds=20, warmup_rounds=3)
        milliseconds = 1000 * benchmark.stats.stats.median / images
        benchmark.extra_info["milliseconds_an_image"] = milliseconds
        record_property("ms an image", f"{milliseconds:.4f}")

    return time_calls


def pytest_terminal_summary(terminalreporter):
    noted = [
        f"{value:>10} {name}: {report.nodeid.rpartition('::')[2]}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if noted:
        terminalreporter.section("medians")
        terminalreporter.write_line("\n".join(noted))
