"""The limits of memory and CPUs: of the machine, of control groups in both versions, of ulimit."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers.samples import noise, two_classes

from attentionce.data import image_folder, limits

GB = 10**9


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A function that makes /proc with these groups and mounts, on a machine with 64 GB free."""
    monkeypatch.setattr(limits, "PROC", tmp_path / "proc")

    def make(cgroup, *mounts):
        own = tmp_path / "proc" / "self"
        own.mkdir(parents=True, exist_ok=True)
        (own / "cgroup").write_text(cgroup)
        lines = [f"31 23 0:28 {mount}\n" for mount in mounts]
        (own / "mountinfo").write_text("22 1 0:21 / /proc rw - proc proc rw\n" + "".join(lines))
        (tmp_path / "proc" / "meminfo").write_text("MemAvailable:   62500000 kB\n")

    return make


def group(folder, **files):
    """Make a control group: `memory_max=1` is its file memory.max."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


def version_2(folder, mount_root="/"):
    return f"{mount_root} {folder} rw,nosuid - cgroup2 cgroup rw,nsdelegate"


def version_1(folder, controller, mount_root="/"):
    return f"{mount_root} {folder} rw,nosuid - cgroup cgroup rw,{controller}"


def test_machine_alone(proc):
    proc("")
    assert limits.free_memory() == 64 * GB
    assert image_folder.memory_limit() == 32 * GB


def test_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PROC", tmp_path)
    assert limits.free_memory() == math.inf
    assert image_folder.memory_limit() == 4 * GB
    assert limits.cpus() >= 1


@pytest.mark.parametrize("below", ["", "/sub/group"])
def test_version_2(proc, tmp_path, below):
    """What files left in memory can be dropped; a limit of any group above counts too."""
    top = tmp_path / "a b"
    stat = "anon 7\ninactive_file 200000000\nactive_file 5"
    group(top, memory_max=2 * GB, memory_current=GB, memory_stat=stat, cpu_max="150000 100000")
    group(top / "sub" / "group", memory_max="max", memory_current=GB // 2, cpu_max="max 100000")
    proc(f"0::{below or '/'}\n", version_2(str(top).replace(" ", "\\040")))
    assert limits.free_memory() == 1.2 * GB
    assert limits.cpus() == min(2, limits.os.cpu_count())


def test_version_2_high_counts(proc, tmp_path):
    group(tmp_path / "g", memory_max="max", memory_high=3 * GB, memory_current=GB)
    proc("0::/\n", version_2(tmp_path / "g"))
    assert limits.free_memory() == 2 * GB


@pytest.mark.parametrize("own", ["/docker/0123", "/"])
def test_version_1(proc, tmp_path, own):
    """As docker has it: the mount's root is the container's group, which may see itself as /."""
    names = {"memory_limit_in_bytes": 1300 * 10**6, "memory_usage_in_bytes": 900 * 10**6}
    group(tmp_path, memory_limit_in_bytes=1, memory_usage_in_bytes=0)  # not one of the mount
    group(tmp_path / "m", **names, memory_stat="cache 3\ntotal_inactive_file 100000000")
    group(tmp_path / "c", **{"cpu_cfs_quota_us": 50000, "cpu_cfs_period_us": 100000})
    proc(
        f"9:memory:{own}\n4:cpu,cpuacct:{own}\n0::/\n",
        version_1(tmp_path / "m", "memory", "/docker/0123"),
        version_1(tmp_path / "c", "cpu,cpuacct", "/docker/0123"),
        version_2(tmp_path / "unified"),
    )
    assert limits.free_memory() == 500 * 10**6
    assert limits.cpus() == 1


def test_version_1_without_limits(proc, tmp_path):
    names = {"memory_limit_in_bytes": 2**63 - 4096, "memory_usage_in_bytes": 900 * 10**6}
    group(tmp_path / "m", **names)
    group(tmp_path / "c", **{"cpu_cfs_quota_us": -1, "cpu_cfs_period_us": 100000})
    proc(
        "9:memory:/\n4:cpu:/\n",
        version_1(tmp_path / "m", "memory"),
        version_1(tmp_path / "c", "cpu"),
    )
    assert limits.free_memory() == 64 * GB
    assert limits.cpus() == len(limits.os.sched_getaffinity(0))


def test_exceeded_limit_leaves_nothing(proc, tmp_path):
    group(tmp_path / "g", memory_max=GB, memory_current=2 * GB)
    proc("0::/\n", version_2(tmp_path / "g"))
    assert limits.free_memory() == 0


def test_threads_follow_the_quota(proc, tmp_path, monkeypatch):
    group(tmp_path / "g", cpu_max="100000 100000")
    proc("0::/\n", version_2(tmp_path / "g"))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        limits.limit_threads()
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        limits.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS ignores ulimit -v")
def test_images_are_mapped_from_a_file_under_ulimit(tmp_path):
    """The machine has room for 60 MB, the process has not: it must not ask for them."""
    root = two_classes(tmp_path, [noise(90, 90, 3)] * 80, [noise(90, 91, 3)])
    code = f"""
import resource, torch
from attentionce.data import limits
from attentionce.data.image_folder import image_folder
torch.set_num_threads(1)
image_folder({root!r}, "train", 8)  # all that decoding loads
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
assert limits.free_memory() < 101_000_000
pixels = image_folder({root!r}, "train", 500).pixels
print(tuple(pixels.shape), ".npy" in open("/proc/self/maps").read())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "(80, 3, 500, 500) True\n", done.stderr


def test_limit_of_this_process_is_read():
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**46, before[1]))
    try:
        assert limits._address_space() < 2**46
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert limits._address_space() == math.inf or before[0] != resource.RLIM_INFINITY
