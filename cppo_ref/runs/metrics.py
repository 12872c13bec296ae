"""What a training step reports, and the clock behind its seconds."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.grpo import zero_variance
from cppo_ref.rewards import undecided
from cppo_ref.rollouts import Batch
from cppo_ref.vlm.peaks import read_peak, reset_peak


@dataclass(frozen=True)
class StepMetrics:
    """One step's scalars. Shares are in [0, 1], KL and entropies in nats, seconds in wall time."""

    step: int
    reward: float  # mean over the B completions
    accuracy: float  # share of completions with the right boxed answer: the step's own avg@G
    format: float  # share of completions in the format
    undecided: int  # completions whose answer math-verify could not judge within its bounds: they count as wrong
    policy_loss: float  # clipped surrogate, mean over the step's updates
    kl: float  # k3 to the reference, weighted like the policy loss
    cpl: float  # contrastive perception loss, mean over the step's perception tokens; 0 when nothing was selected
    grad_norm: float  # before clipping, mean over the step's updates
    clip_fraction: float  # share of tokens whose ratio left the clip range, weighted like the policy loss
    updates: int  # optimizer updates; 0 when there was nothing to learn from
    zero_variance_groups: float  # share of groups whose rewards are all equal
    gated_rows: int  # completions with A > 0
    perturbed_rows: int  # completions that went through the perturbed forwards
    perception_tokens: float  # selected share of the gated rows' completion tokens
    entropy_shift: float  # mean ΔH over the gated rows' completion tokens
    completion_tokens: float  # mean completion length
    truncated: float  # share of completions cut at max_new_tokens
    learning_rate: float
    seconds: dict[str, float] = field(default_factory=dict)  # per phase
    peak_bytes: dict[str, int] = field(default_factory=dict)  # most memory held in each phase; empty where nobody counts

    def scalars(self) -> dict[str, float]:
        """All numbers in one flat dict; phases as seconds/NAME and gigabytes/NAME."""
        flat = {name: value for name, value in vars(self).items() if name not in ("seconds", "peak_bytes")}
        flat |= {f"seconds/{name}": value for name, value in self.seconds.items()}
        return flat | {f"gigabytes/{name}": value / 1e9 for name, value in self.peak_bytes.items()}

    def summary(self) -> dict[str, str]:
        """The few numbers a progress bar shows."""
        return {
            "reward": f"{self.reward:.2f}",
            "avg": f"{self.accuracy:.2f}",
            "cpl": f"{self.cpl:.2f}",
            "kl": f"{self.kl:.3f}",
            "dead": f"{self.zero_variance_groups:.0%}",
            "s": "/".join(f"{value:.1f}" for value in self.seconds.values()),
        }


class PhaseClock:
    """Adds up wall seconds per named phase, waiting for the GPU at each boundary, and notes the memory's peak."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside as `phase`."""
        start = self._now()
        reset_peak(self.device)
        yield
        self.seconds[phase] += self._now() - start
        peak = read_peak(self.device)
        if peak is not None:
            self.peak_bytes[phase] = max(self.peak_bytes.get(phase, 0), peak)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def step_metrics(
    batch: Batch, updates: list[dict[str, float]], config: CPPOConfig, step: int, optimizer: Any, clock: PhaseClock
) -> StepMetrics:
    """Boil a batch and its updates down to the scalars of `StepMetrics`."""
    mask = batch.rollouts.completion_mask
    correct = batch.rewards > 0.5  # a right answer alone earns 0.9, the format alone 0.1
    tokens = max(int((mask & batch.gate[:, None]).sum()), 1)  # of the gated rows
    selected = sum(update["selected"] for update in updates)
    learned = ("policy_loss", "kl", "grad_norm", "clip_fraction")
    return StepMetrics(
        step=step,
        reward=batch.rewards.mean().item(),
        accuracy=correct.float().mean().item(),
        undecided=sum(map(undecided, batch.rollouts.texts, batch.rollouts.answers)),
        format=(batch.rewards - 0.9 * correct > 0.05).float().mean().item(),
        updates=len(updates),
        cpl=sum((update["cpl"] * (update["selected"] / selected) for update in updates if selected), 0.0),
        zero_variance_groups=zero_variance(batch.rewards, config.group_size).float().mean().item(),
        gated_rows=int((batch.advantages > 0).sum()),
        perturbed_rows=0 if batch.selected is None else int(batch.gate.sum()),
        perception_tokens=0.0 if batch.selected is None else int(batch.selected.sum()) / tokens,
        entropy_shift=0.0 if batch.shift is None else batch.shift.sum().item() / tokens,
        completion_tokens=mask.sum(dim=1).float().mean().item(),
        truncated=(~batch.rollouts.finished).float().mean().item(),
        learning_rate=optimizer.param_groups[0]["lr"],
        seconds=dict(clock.seconds),
        peak_bytes=clock.peak_bytes,
        **{name: sum(update[name] for update in updates) / max(len(updates), 1) for name in learned},
    )
