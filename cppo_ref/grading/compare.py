"""Whether two results are the same, and if not, in which of their numbers they differ."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 5e-4  # results are written with four digits, so that a reader can redo them


def difference(seen: Mapping[Any, Any], wanted: Mapping[Any, Any], tolerance: float = TOLERANCE) -> str:
    """The first thing in which two observations differ, as a sentence; empty if there is none."""
    for name, want in wanted.items():
        got = seen[name]
        if isinstance(want, Tensor):
            sentence = _tensor_difference(got, want, tolerance)
        elif isinstance(want, float):
            got = got.detach() if isinstance(got, Tensor) else got
            same = isinstance(got, int | float) or (isinstance(got, Tensor) and got.numel() == 1)
            sentence = "" if same and abs(float(got) - want) <= TOLERANCE else f"is {shown(got)}, expected {want}"
        else:
            got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
            same = not isinstance(got, Tensor) and bool(got == want)
            sentence = "" if same else f"is {shown(got)}, expected {shown(want)}"
        if sentence:
            return f"the {name} {sentence}"
    return ""


def _tensor_difference(got: Any, want: Tensor, tolerance: float) -> str:
    if got is None:
        return f"is None (is `return` missing?), expected a tensor of shape {list(want.shape)}"
    if not isinstance(got, Tensor):
        return f"is a {type(got).__name__}, expected a tensor of shape {list(want.shape)}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, expected {list(want.shape)}"
    if (got.dtype == torch.bool) != (want.dtype == torch.bool):
        return f"has dtype {got.dtype}, expected {want.dtype}"
    got = got.detach()
    if torch.allclose(got.double(), want.double(), rtol=TOLERANCE, atol=tolerance, equal_nan=True):
        return ""
    return f"is {shown(got)}, expected {shown(want)}"


def shown(value: Any) -> str:
    """A value as a reader would write it: tensors as nested lists of four digits."""
    if isinstance(value, Tensor):
        return shown(value.detach().tolist())
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
