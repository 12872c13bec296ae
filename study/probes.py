"""What is measured along a run without changing it: the detector, validation accuracy, and the two gradients side by side."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import completion_labels
from cppo_ref.rollouts import Batch
from cppo_ref.step import CPPO, Parts, update
from cppo_ref.vlm.policy import Policy
from study.controls import without_grpo
from study.metrics import Examples, accuracy

PROBE_IMAGES = 32  # validation images per probe and split, 8 completions each
NOTHING = float("nan")


def batch_auroc(policy: Policy, batch: Batch) -> float:
    """AUROC of the step's own ΔH for the true perception tokens of its gated rows; NaN without both kinds of token."""
    if batch.shift is None:
        return NOTHING
    truth: list[bool] = []
    shifts: list[float] = []
    for labels, row, gated in zip(completion_labels(policy, batch.rollouts), batch.shift, batch.gate, strict=True):
        if gated:
            truth += [label.kind == "perception" for label in labels]
            shifts += row[: len(labels)].tolist()
    return float(roc_auc_score(truth, shifts)) if len(set(truth)) == 2 else NOTHING


def gradient_alignment(policy: Policy, batch: Batch, config: CPPOConfig, parts: Parts = CPPO) -> dict[str, float]:
    """Cosine of ∇(λ·CPL) and ∇(GRPO with its KL), and the ratio of their norms; NaN where one of them is zero.

    Both are taken at the policy's present parameters and leave no trace: nothing is stepped, no gradient stays.
    """
    result = {"gradient_cosine": NOTHING, "gradient_ratio": NOTHING}
    if batch.selected is None or not batch.selected.any():
        return result
    cpl = gradient(policy, batch, *without_grpo(config, parts))
    grpo = gradient(policy, replace(batch, selected=None), replace(config, cpl_weight=0.0), parts)
    norms = cpl.norm(), grpo.norm()
    if min(norms) > 0:
        result = {"gradient_cosine": (cpl @ grpo / norms[0] / norms[1]).item(), "gradient_ratio": (norms[0] / norms[1]).item()}
    return result


def gradient(policy: Policy, batch: Batch, config: CPPOConfig, parts: Parts = CPPO) -> Tensor:
    """The gradient of the whole batch's loss, flat: an update whose learning rate is zero."""
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    everyone = torch.arange(len(batch.rewards))
    update(policy, still, batch, everyone, replace(config, max_grad_norm=1e12), Accelerator(cpu=True), parts)
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in policy.trainable])
    still.zero_grad(set_to_none=True)
    return flat


@contextmanager
def parameters_at(policy: Policy, values: list[Tensor]) -> Iterator[None]:
    """Inside, the trainable parameters are `values`; afterwards they are what they were."""
    now = snapshot(policy)
    put(policy, values)
    try:
        yield
    finally:
        put(policy, now)


def snapshot(policy: Policy) -> list[Tensor]:
    """Copies of the trainable parameters."""
    return [parameter.detach().clone() for parameter in policy.trainable]


@torch.no_grad()
def put(policy: Policy, values: list[Tensor]) -> None:
    """Give the trainable parameters these values."""
    for parameter, value in zip(policy.trainable, values, strict=True):
        parameter.copy_(value)


def validation(policy: Policy, rows: dict[str, Examples], seed: int) -> dict[str, float]:
    """avg@8 on the probe's plain and shifted validation images."""
    return {
        "validation_avg_at_8": accuracy(policy, rows["plain"], seed),
        "validation_shift_avg_at_8": accuracy(policy, rows["shift"], seed),
    }
