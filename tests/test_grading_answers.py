"""Whole answers that a student may write: the wrong ones get their diagnosis, the unusual but right ones pass."""

# ruff: noqa: E501  an answer stands in one line
import linecache

import pytest
from test_grading import CELLS, diagnosis, mutate

from cppo_ref import grading


def answer(name, body):
    """A function of the solution's signature with another body, in a file of its own, as a notebook's cell is."""
    source = CELLS[name][1].splitlines()[0] + "\n" + "\n".join("    " + line for line in body.splitlines()) + "\n"
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    namespace = {}
    exec(CELLS[name][0], namespace)
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace[name]


CUT = [
    ("clipped_surrogate", "(logprobs - old_logprobs).exp()", "(logprobs - old_logprobs).exp().detach()"),
    ("kl_to_reference", "ref_logprobs - logprobs", "(ref_logprobs - logprobs).detach()"),
    ("kl_to_reference", "d.exp() - d - 1", "torch.tensor((d.exp() - d - 1).tolist())"),
    ("view_kl", ".sum(dim=-1)", ".sum(dim=-1).detach()"),
    ("micro_batch_losses", "torch.stack([losses[kept].sum() / tokens", "torch.tensor([losses[kept].sum().item() / tokens"),
    (
        "total_loss",
        "return grpo + cpl_weight * mean(contrast, gated)",
        "return (grpo + cpl_weight * mean(contrast, gated)).item()",
    ),
]


@pytest.mark.parametrize(("name", "old", "new"), CUT)
def test_right_values_without_a_gradient_are_refused(name, old, new):
    assert diagnosis(name, mutate(name, old, new)).startswith(f"{name}: no gradient: the values are right, but `.detach()`")


WRONG = {
    "one term without gradient": (
        "total_loss",
        "def mean(v, m):\n    return v[m].sum() / m.sum().clamp(min=1)\ng = selected & (advantages > 0)[:, None]\nreturn mean(surrogate, completion_mask) + kl_weight * mean(kl, completion_mask) + cpl_weight * mean(contrast, g).detach()",
        "the gradient through contrast is [[0, 0, 0], [0, 0, 0]], expected [[0.25, 0, 0], [0, 0, 0]]",
    ),
    "sign and population std": (
        "group_advantages",
        "g = rewards.view(-1, group_size)\ndead = g.amax(1, keepdim=True) == g.amin(1, keepdim=True)\nreturn torch.where(dead, 0.0, (g.mean(1, keepdim=True) - g) / (g.std(1, keepdim=True, correction=0) + 1e-4)).flatten()",
        "two mistakes at once: population std",
    ),
    "sign and no mask": ("entropy_shift", "return entropy - removed_entropy", "two mistakes at once: sign reversed"),
    "bits and sign": (
        "token_entropy",
        "p = logits.softmax(-1)\nreturn (p * p.clamp(min=1e-38).log2()).sum(-1)",
        "two mistakes at once: bits for nats",
    ),
    "swapped views and A ≥ 0": (
        "gated_loss",
        "a = logits.detach()\nreturn cpl(exact_kl(a, logits_removed), exact_kl(a, logits_preserved), selected & (advantages >= 0)[:, None], tau=0.1)",
        "two mistakes at once: the views are swapped",
    ),
    "think twice, empty box": (
        "format_reward",
        "b = text.strip()\nreturn float(b.startswith('<think>') and '</think>' in b and last_box(b.partition('</think>')[2]) is not None)",
        "two mistakes at once: <think> and </think> may occur once",
    ),
    "keepdim forgotten": (
        "group_advantages",
        "g = rewards.view(-1, group_size)\nreturn ((g - g.mean(dim=1)) / g.std(dim=1)).flatten()",
        "two groups of four: raises RuntimeError in line 3 of its cell, `return ((g - g.mean(dim=1)) / g.std(dim=1)).flatten()`: The size of tensor a (4) must match the size of tensor b (2)",
    ),
    "not flattened": (
        "group_advantages",
        "g = rewards.view(-1, group_size)\nreturn g - g.mean(dim=1, keepdim=True)",
        "the result has shape [2, 4], expected [8]",
    ),
    "no return": (
        "kl_to_reference",
        "d = ref_logprobs - logprobs",
        "the result is None (is `return` missing?), expected a tensor of shape [1, 3]",
    ),
    "KL summed over tokens": (
        "view_kl",
        "return F.kl_div(logits_view.log_softmax(-1), logits.log_softmax(-1), reduction='sum', log_target=True)",
        "the result has shape [], expected [1, 3]",
    ),
    "NaN gradient": (
        "contrastive_loss",
        "x = torch.where(selected, (kl_preserved - kl_removed) / tau, torch.nan)\nreturn torch.where(selected, torch.nn.functional.softplus(x), 0).mean()",
        "averaged over all tokens",
    ),
    "sum of both": ("worth_an_update", "return rewards.view(-1, group_size).std(1) > 0", "the result is"),
    "first number": ("extract_boxed", "m = re.search(r'\\d+', text)\nreturn m[0] if m else None", "the result is"),
    "in place": (
        "clipped_surrogate",
        "r = logprobs.sub_(old_logprobs).exp()\na = advantages[:, None]\nreturn -torch.minimum(r * a, r.clamp(.8, 1.2) * a)",
        "changed in place",
    ),
    "mask as float": (
        "select_perception_tokens",
        "return (completion_mask & (shift > 0)).float()",
        "the result has dtype torch.float32, expected torch.bool",
    ),
    "reward out of weights": ("reward", "return float(last_box(text) == answer)", "the result is 1, expected 0.9"),
    "an empty box is no box": ("extract_boxed", "return last_box(text) or None", "an empty box is the last box"),
    "int of the box": (
        "reward",
        "try:\n    right = int(last_box(text)) == int(answer)\nexcept (TypeError, ValueError):\n    right = False\nreturn 0.9 * right + 0.1 * in_format(text)",
        "you compare numbers, but an answer may be any text",
    ),
    "times mask": (
        "micro_batch_losses",
        "return torch.stack([(l * m).sum() for l, m in zip(token_losses.split(size), mask.split(size))]) / mask.sum()",
        "masked by a product",
    ),
    "rows of micro-batches": (
        "micro_batch_losses",
        "return torch.stack([l[m].mean() * len(l) / len(mask) for l, m in zip(token_losses.split(size), mask.split(size))])",
        "two rows at a time: 21/8 and 15/8: the result is [1.75, 3.75]",
    ),
    "reference weighs": (
        "kl_to_reference",
        "d = ref_logprobs - logprobs\nreturn ref_logprobs.exp() * (d.exp() - d - 1)",
        "d = 0, −ln 2, ln 2: the result is",
    ),
    "log-ratio clamped": (
        "clipped_surrogate",
        "d, a = logprobs - old_logprobs, advantages[:, None]\nreturn -torch.minimum(d.exp() * a, d.clamp(-.2, .2).exp() * a)",
        "the result is [[-1.221, -1, -0.5]",
    ),
    "groups strided": (
        "group_advantages",
        "g = rewards.view(group_size, -1).T\nreturn ((g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-4)).T.flatten()",
        "two groups of four: the result is",
    ),
    "only places on a grid": (
        "hide_quarter",
        "p = np.array(image)\nh, w = p.shape[0] // 2, p.shape[1] // 2\ny, x = rng.integers(2) * h, rng.integers(2) * w\np[y:y + h, x:x + w] = 128\nreturn Image.fromarray(p)",
        "every place must be equally likely",
    ),
    "normal factor": (
        "dim",
        "f = 1 + 0.25 * strength * rng.standard_normal()\nreturn Image.fromarray(np.clip(np.asarray(image) * f, 0, 255).astype(np.uint8))",
        "the factor must spread over 0.5…1.5",
    ),
    "a threshold": (
        "covered_share",
        "c = np.abs(np.asarray(original).astype(int) - np.asarray(view)).max(-1) > 10\ns = len(c) // grid\nreturn c.reshape(grid, s, grid, s).mean((1, 3))",
        "one step of one channel: the result is",
    ),
    "quantile of the batch": (
        "select_perception_tokens",
        "c = completion_mask & (shift > 0)\nreturn c & (shift >= shift[c].quantile(1 - top_fraction)) if c.any() else c",
        "the top half, rounded up: the result is",
    ),
    "symmetric KL": (
        "view_kl",
        "p, q = logits.log_softmax(-1), logits_view.log_softmax(-1)\nreturn ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2",
        "the result is [[0.1373, 0.1373, 0]]",
    ),
    "mean of rows": (
        "contrastive_loss",
        "v, n = torch.nn.functional.softplus((kl_preserved - kl_removed) / tau) * selected, selected.sum(1)\nreturn (v.sum(1) / n.clamp(min=1)).mean()",
        "the result is",
    ),
    "best of the group": (
        "rows_to_perturb",
        "g = rewards.view(-1, group_size)\nreturn (g == g.amax(1, keepdim=True)).flatten()",
        "rewards of two groups: the result is",
    ),
    "std of the batch": (
        "worth_an_update",
        "return bool(rewards.std() > 0) or kl_weight > 0",
        "every group dead, each with its own reward",
    ),
    "box outside": ("hide_quarter", "p = np.array(image)\np[:1, :1] = 128\nreturn Image.fromarray(p)", "rng ignored"),
}


@pytest.mark.parametrize(("name", "body", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_gets_its_diagnosis(name, body, says):
    text = diagnosis(name, answer(name, body))
    assert says in text and text.count("\n") == 0


RIGHT = {
    "einsum": (
        "view_kl",
        "p, q = logits.log_softmax(-1), logits_view.log_softmax(-1)\nreturn torch.einsum('btv,btv->bt', p.exp(), p - q)",
    ),
    "double, no where": (
        "group_advantages",
        "g = rewards.double().view(-1, group_size)\nreturn ((g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-4)).flatten().float()",
    ),
    "loop over groups": (
        "group_advantages",
        "out = []\nfor g in rewards.split(group_size):\n    same = bool((g == g[0]).all())\n    out += [torch.zeros_like(g) if same else (g - g.mean()) / (g.std() + 1e-4)]\nreturn torch.cat(out)",
    ),
    "by sign of A": (
        "clipped_surrogate",
        "r, a = (logprobs - old_logprobs.detach()).exp(), advantages[:, None]\nreturn -torch.where(a > 0, r.clamp(max=1.2), r.clamp(min=0.8)) * a",
    ),
    "expm1": ("kl_to_reference", "d = ref_logprobs.detach() - logprobs\nreturn torch.expm1(d) - d"),
    "logaddexp": (
        "contrastive_loss",
        "x = ((kl_preserved - kl_removed) / tau)[selected]\nreturn torch.logaddexp(x, torch.zeros_like(x)).mean() if len(x) else torch.tensor(0.0)",
    ),
    "lists of arrays": (
        "covered_share",
        "c = (np.array(original) != np.array(view)).any(-1)\nreturn [np.array([q.mean() for q in np.split(r, grid, axis=1)]) for r in np.split(c, grid)]",
    ),
    "loops": (
        "select_perception_tokens",
        "import math\nout = torch.zeros_like(completion_mask)\nfor i, (s, m) in enumerate(zip(shift.tolist(), completion_mask.tolist())):\n    c = [j for j in range(len(s)) if m[j] and s[j] > 0]\n    for j in sorted(c, key=lambda j: -s[j])[:math.ceil(top_fraction * len(c))]:\n        out[i, j] = True\nreturn out",
    ),
    "list of sums": (
        "micro_batch_losses",
        "kept = torch.where(mask, token_losses, 0).sum(1) / mask.sum()\nreturn torch.stack([kept[i:i + size].sum() for i in range(0, len(kept), size)])",
    ),
}


@pytest.mark.parametrize(("name", "body"), RIGHT.values(), ids=RIGHT)
def test_an_unusual_right_answer_passes(name, body, capsys):
    getattr(grading, f"check_{name}")(answer(name, body))
    assert capsys.readouterr().out.startswith(f"{name}: right in all ")
