"""The origin of a record: the code's commit, versions, the machine."""

import os
import platform
import re
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]


def git_state() -> tuple[str, bool]:
    """The commit of the running code, and whether tracked files differ from it.

    Files in experiments/results do not count: commands write them, and no training reads them.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results"
        )
        return git("rev-parse", "HEAD"), changed != ""
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def versions() -> dict[str, str]:
    """Versions of Python, packages and BLAS, and on a GPU the operations in TF32."""
    import torch

    names = ("torch", "torchvision", "lightning", "torchmetrics")
    installed = {name: import_module(name).__version__ for name in names}
    others = {"blas": describe_blas()}
    if torch.cuda.is_available():
        formats = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        }
        others["tf32"] = ", ".join(name for name, allowed in formats.items() if allowed) or "none"
    return {"python": platform.python_version()} | installed | others


def describe_blas() -> str:
    """The library of torch's matrix products, and torch's instruction set."""
    import torch

    config = torch.__config__.show()
    name = re.search(r"BLAS_INFO=(\w+)", config)
    version = re.search(r"Math Kernel Library Version ([\d.]+)", config)
    parts = [name[1] if name else "unknown", version[1] if version else ""]
    return f"{' '.join(filter(None, parts))} ({torch.backends.cpu.get_cpu_capability()})"


def origin(device: "torch.device | None" = None) -> dict[str, Any]:
    """The fields of a record for commit, versions and device (default: the CPU)."""
    commit, dirty = git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "device": describe_device(device),
    }


def describe_device(device: "torch.device | None" = None) -> str:
    """The GPU's name, or the processor's name and its threads in use (default)."""
    import torch

    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(r"^model name.*?: *(.*\S)", cpuinfo.read_text("utf-8"), re.MULTILINE)
        name = models[0] if models else name
    return f"{name} ({torch.get_num_threads()} of {os.cpu_count()} CPUs)"


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
