"""This machine: devices, cores, memory, disk, versions, and what is missing for what."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from visiontune.errors import MachineError

Device = Literal["cpu", "cuda", "mps"]

PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "pyarrow", "pillow", "numpy", "safetensors")
OPTIONAL = {
    "bitsandbytes": ("bitsandbytes", "weights in four bits on CUDA: pip install 'visiontune[qlora]'"),
    "datasets": ("datasets", "known corpora and datasets of the hub: pip install 'visiontune[corpora]'"),
    "gguf": ("gguf", "GGUF exports: pip install 'visiontune[gguf]'"),
    "ray": ("ray", "preparing on a Ray cluster: pip install 'visiontune[ray]'"),
    "scikit-learn": ("sklearn", "the demo: pip install 'visiontune[demo]'"),
    "tensorboard": ("tensorboard", "curves in TensorBoard: pip install 'visiontune[tensorboard]'"),
    "trackio": ("trackio", "runs in trackio: pip install 'visiontune[trackio]'"),
    "wandb": ("wandb", "runs in W&B: pip install 'visiontune[wandb]'"),
    "xllamacpp": ("xllamacpp", "running and certifying GGUF exports: pip install 'visiontune[gguf]'"),
}


@dataclass(frozen=True)
class Hardware:
    """What a recipe needs to know of the machine. `memory` is the device's in bytes, for a CPU the computer's."""

    device: Device
    name: str
    memory: int
    cores: int
    bf16: bool


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def is_first_process() -> bool:
    """Whether this process is the first of its launch or alone; torchrun and `accelerate launch` number them."""
    return os.environ.get("RANK", "0") == "0"


def process_peak_bytes() -> int:
    """The most memory this process has held so far, libraries and data included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes on Linux


def available_devices() -> list[Device]:
    """The devices torch can use here, the best first. Imports torch."""
    import torch

    devices: list[Device] = []
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def processor() -> str:
    """The CPU's name as the system tells it, at least its architecture."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def hardware(device: Device | None = None) -> Hardware:
    """The device asked for, or the best one; raises MachineError if it is not here. Imports torch."""
    import psutil
    import torch

    found = available_devices()
    if device is not None and device not in found:
        raise MachineError(
            f"Device '{device}' was asked for; torch finds {', '.join(found)} here.",
            fix=f"use {found[0]} (--machine.device {found[0]} to train, --device {found[0]} else); `visiontune doctor` "
            "says what torch was built with",
        )
    chosen = device or found[0]
    if chosen == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = torch.cuda.is_bf16_supported()
        return Hardware("cuda", properties.name, properties.total_memory, cores(), bf16)
    memory = psutil.virtual_memory().total
    name = "Apple GPU" if chosen == "mps" else processor()
    return Hardware(chosen, name, memory, cores(), bf16=False)


def doctor() -> dict[str, Any]:
    """What this machine has, as plain values: devices, memory, disk, versions, and what is missing for what."""
    import psutil
    import torch

    devices = []
    for device in available_devices():
        seen = hardware(device)
        devices.append({"device": device, "name": seen.name, "memory_bytes": seen.memory})
    missing = [
        {"package": package, "needed_for": purpose}
        for package, (module, purpose) in OPTIONAL.items()
        if importlib.util.find_spec(module) is None
    ]
    if devices[0]["device"] == "cpu":
        missing.append({"package": "a GPU", "needed_for": "training models above some million parameters in hours"})
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "devices": devices,
        "torch_built_for_cuda": torch.version.cuda,
        "versions": {package: _version(package) for package in ("visiontune", *PACKAGES)},
        "missing": missing,
    }


@cache  # each is searched for in all folders of packages, and a run asks for ten, twice
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of the packages that a run's numbers depend on."""
    return {package: _version(package) for package in ("visiontune", *PACKAGES)}
