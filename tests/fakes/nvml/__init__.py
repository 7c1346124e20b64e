"""A libnvidia-ml.so.1 of our own: any program that asks NVML sees GPUs whose true power is known.

Use::

    library = nvml.build(folder)
    with Edges.create(path, [Gpu()]) as edges:
        subprocess.run([…], env=os.environ | nvml.environment(library, path))   # unmodified programs
        with nvml.loaded(library, path):                                       # or in this process
            …
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml  # type: ignore[import-untyped]
from tests.fakes.nvml.edges import Edges, Gpu

__all__ = ["Edges", "Gpu", "build", "environment", "loaded"]

_SOURCE = Path(__file__).with_name("fake_nvml.c")


def build(folder: Path) -> Path:
    """Compile the library into a folder unless it is there, and return its path; its name is that of NVIDIA's.

    Beside it stands an ``nvidia-smi`` that does nothing: CodeCarbon looks for one before it asks NVML.
    """
    library = folder / "libnvidia-ml.so.1"
    if not library.exists() or library.stat().st_mtime < _SOURCE.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{os.getpid()}.so"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
        subprocess.run(["gcc", *flags, "-o", str(unfinished), str(_SOURCE), "-lm"], check=True)
        command = folder / "nvidia-smi"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        unfinished.replace(library)
    return library


def environment(library: Path, edges: Path) -> dict[str, str]:
    """Return the variables with which a process loads this library and sees these edges."""
    before = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "PATH": os.environ.get("PATH", "")}
    paths = {name: ":".join(filter(None, [str(library.parent), value])) for name, value in before.items()}
    return {**paths, "FAKE_NVML_EDGES": str(edges)}


@contextmanager
def loaded(library: Path, edges: Path) -> Iterator[None]:
    """Let pynvml of this process use the library; its users must have closed what they opened at the end."""
    before, os.environ["FAKE_NVML_EDGES"] = pynvml.nvmlLib, str(edges)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    try:
        yield
    finally:
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml.nvmlLib = before
        del os.environ["FAKE_NVML_EDGES"]
