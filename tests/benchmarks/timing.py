"""What the benchmarks share: wall times of repeated calls, and a row of their table."""

import time
from collections.abc import Callable


def seconds(function: Callable[[], object], repeats: int = 5) -> list[float]:
    """Wall times of `repeats` calls after one warm-up, sorted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return sorted(times)


def row(label: str, times: list[float], target: str = "") -> None:
    """Print the least, the median and the largest of sorted times."""
    middle = times[len(times) // 2]
    print(f"{label:<62} {min(times):>9.4f} {middle:>9.4f} {max(times):>9.4f}  {target}")
