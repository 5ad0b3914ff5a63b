"""Groups of processes, started as torchrun starts them, and a model for them."""

import os
import pickle
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

from attentionce.training import processes
from helpers.forkserver import CONTEXT


class Group:
    """`count` processes that call function(*args) in the environment that torchrun makes."""

    def __init__(self, folder, count, function, *args):
        self.folder = folder / f"group{len(list(folder.glob('group*')))}"
        self.folder.mkdir()
        # torchrun's part
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        self.processes = []
        for rank in range(count):
            variables = {**common, "RANK": rank, "LOCAL_RANK": rank}
            variables["TORCHELASTIC_ERROR_FILE"] = self.folder / f"{rank}.error"
            own = {name: str(value) for name, value in variables.items()}
            arguments = self.folder, own, function, args
            process = CONTEXT.Process(target=_member, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def join(self, seconds=120):
        """The exit statuses. After `seconds` the processes left are killed: their status is −9."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def results(self):
        """What the function returned in each process."""
        assert self.join() == [0] * len(self.processes), self.output()
        paths = [self.folder / f"{rank}.result" for rank in range(len(self.processes))]
        return [pickle.loads(path.read_bytes()) for path in paths]

    def output(self, rank=None):
        """What one process, or all of them, have written to stdout and stderr."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        paths = [self.folder / f"{number}.output" for number in ranks]
        return "".join(path.read_text() for path in paths if path.exists())


def _member(folder, environment, function, args):
    os.environ.update(environment)
    rank = environment["RANK"]
    file = os.open(folder / f"{rank}.output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    processes.start()
    (folder / f"{rank}.result").write_bytes(pickle.dumps(function(*args)))
    processes.stop()


class Double(nn.Module):
    def forward(self, x):
        return x.double()


class Tiny(nn.Module):
    """A model in float64 without BatchNorm, whose statistics would be those of each process."""

    def __init__(self, feature_dim=128, arch="resnet50", stem="small"):
        super().__init__()
        layers = Double(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        self.f = nn.Sequential(*layers).double()
        self.g = nn.Linear(16, feature_dim).double()

    def forward(self, x, recompute=None):
        feature = (self.f(x) if recompute is None else recompute(self.f, x)).flatten(1)
        return normalize(feature, dim=-1), normalize(self.g(feature), dim=-1)
