"""How much memory and how many CPUs this process may use.

The machine, its container (a control group of Linux, version 1 or 2) and `ulimit -v` each set a
limit, and the smallest counts. A container's limit shows neither in the machine's free memory nor
in its number of CPUs: a process that exceeds the one is killed without a word, and one with more
threads than the other allows is slowed down.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

PROC = Path("/proc")


def free_memory() -> float:
    """How many bytes this process may still take; infinite if nothing says so."""
    return min(
        _machine_memory(), _address_space(), *map(_group_memory, _groups("memory")), math.inf
    )


def cpus() -> int:
    """How many CPUs this process may use; a part of one counts as one."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min([allowed, *map(_group_cpus, _groups("cpu"))])))


def limit_threads() -> None:
    """Let PyTorch, and the decoding of images, use no more threads than there are CPUs.

    Does nothing where OMP_NUM_THREADS is set, because then the user has chosen.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpus():
        torch.set_num_threads(cpus())


def _machine_memory() -> float:
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", (PROC / "meminfo").read_text())
        if found:
            return 1024 * int(found[1])
    return math.inf


def _address_space() -> float:
    """What `ulimit -v` leaves."""
    try:
        import resource  # not on Windows
    except ImportError:
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    with suppress(OSError, ValueError, IndexError):
        pages = int((PROC / "self" / "statm").read_text().split()[0])
        return max(0, limit - pages * resource.getpagesize())
    return math.inf


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups: its own and all above, each with its limit.

    Args:
        controller: "memory" or "cpu".
    """
    paths = {}  # by version
    mounts = []
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                paths["cgroup2"] = path
            elif controller in controllers.split(","):
                paths["cgroup"] = path
        mounts = (PROC / "self" / "mountinfo").read_text().splitlines()
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, top = (_unescaped(word) for word in before.split()[3:5])
        kind, *_, options = after.split()
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # Inside a container the mount's root may be the container's own group.
        below = os.path.relpath(paths[kind], root)
        group = Path(top) if below.startswith("..") else Path(top, below)
        while True:
            yield group
            if group == Path(top):
                break
            group = group.parent


def _unescaped(word: str) -> str:
    """A path of /proc/self/mountinfo, which has blanks as \\040."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), word)


def _numbers(path: Path) -> list[float]:
    """The numbers in a file of a control group; infinite for max, and one such if it is missing."""
    try:
        return [math.inf if word == "max" else float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return [math.inf]


def _group_memory(group: Path) -> float:
    """How many bytes a group may still take; files that it read can be dropped from memory."""
    for limits, used, dropped in (
        (("memory.max", "memory.high"), "memory.current", "inactive_file"),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = min(_numbers(group / name)[0] for name in limits)
        if limit < math.inf and (group / used).exists():
            statistics = ""
            with suppress(OSError):
                statistics = (group / "memory.stat").read_text()
            droppable = re.search(rf"^{dropped} (\d+)$", statistics, re.MULTILINE)
            taken = _numbers(group / used)[0] - (int(droppable[1]) if droppable else 0)
            return max(0, limit - taken)
    return math.inf


def _group_cpus(group: Path) -> float:
    """How many CPUs a group may use on average."""
    quota, *period = _numbers(group / "cpu.max")
    if not period:  # version 1
        quota = _numbers(group / "cpu.cfs_quota_us")[0]
        period = _numbers(group / "cpu.cfs_period_us")
    return quota / period[0] if quota > 0 and period[0] < math.inf else math.inf
