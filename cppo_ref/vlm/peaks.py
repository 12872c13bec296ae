"""Peaks: the memory that a stretch of a run did need, by the GPU's allocator, by counting tensors, or by the system."""

import sys
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def reset_peak(device: torch.device) -> None:
    """Begin a new peak: of the GPU's allocator, or of the `LiveTensors` that is counting on a CPU, if one is."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LiveTensors.counting is not None:
        LiveTensors.counting.peak = LiveTensors.counting.live


def read_peak(device: torch.device) -> int | None:
    """Bytes at the peak since `reset_peak`; None on a CPU where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return None if LiveTensors.counting is None else LiveTensors.counting.peak


class LiveTensors(TorchDispatchMode):
    """Inside, counts the bytes of the CPU tensors that are alive, beyond those there before; `peak` is the most there were.

    It looks at every operation, so it is slow: for a step or two, to compare with `estimate`.
    """

    counting: "LiveTensors | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._seen: set[int] = set()

    def __enter__(self) -> "LiveTensors":
        LiveTensors.counting = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        LiveTensors.counting = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count the storages that it made."""
        given = _storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for key, storage in _storages(result).items():
            if key not in given and key not in self._seen:
                self._seen.add(key)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        return result

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _storages(tree: Any) -> dict[int, Any]:
    """What the CPU tensors among these values are stored in, by its identity."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu")
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def process_peak() -> float | None:
    """Bytes the process held at most, weights and libraries included; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
