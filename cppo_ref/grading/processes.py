"""Grader of notebook 09: one mean over the tokens of all processes."""

from typing import Any

import torch

from cppo_ref.grading.grader import Case, Function, grade

MEAN_CASES = [
    Case("equally many tokens: (2 + 4) / 4", (torch.tensor([2.0, 4.0]), torch.tensor([2, 2])), torch.tensor(1.5)),
    Case("three tokens and one: (6 + ½) / 4", (torch.tensor([6.0, 0.5]), torch.tensor([3, 1])), torch.tensor(1.625)),
    Case("three processes: 12 / 10", (torch.tensor([1.0, 2.0, 9.0]), torch.tensor([4, 1, 5])), torch.tensor(1.2)),
    Case("a process without tokens: 3 / 2", (torch.tensor([3.0, 0.0]), torch.tensor([2, 0])), torch.tensor(1.5)),
    Case("no token anywhere", (torch.zeros(2), torch.tensor([0, 0])), torch.tensor(0.0)),
]

MEAN_MISTAKES = {
    "a mean of means: a token weighs more where there are few; add up first": lambda s, c: (s / c.clamp(min=1)).mean(),
    "a mean of means, and 0/0 where a process has no token; add up first": lambda s, c: (s / c).mean(),
    "0/0 where no process has a token: divide by at least 1": lambda s, c: s.sum() / c.sum(),
    "divide by the number of tokens, not of processes": lambda s, c: s.mean(),
    "this is the sum: divide by the number of tokens": lambda s, c: s.sum(),
    "one number for each process: add up the sums, too": lambda s, c: s / c.sum().clamp(min=1),
}


def _mean(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return sums.sum() / counts.sum().clamp(min=1)


def _as_tensor(result: Any) -> Any:
    return torch.tensor(float(result)) if isinstance(result, int | float) else result


def check_global_mean(function: Function) -> None:
    """Grade global_mean(sums, counts) -> the mean over the tokens of all processes, 0 if there is none."""
    grade(function, MEAN_CASES, MEAN_MISTAKES, _mean, convert=_as_tensor)
