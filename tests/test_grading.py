"""The graders, graded: each passes its solution, and names the mistake planted in each mutant of it."""

import ast
import inspect
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from cppo_ref import grading
from cppo_ref.grading.compare import shown
from cppo_ref.grading.grader import Case, MistakeError, grade

ROOT = Path(__file__).parents[1]
EXERCISES = ROOT / "notebooks" / "exercises"
COURSE = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SOLUTIONS = sorted(EXERCISES.glob("solutions/*.ipynb"))

sys.path.insert(0, str(ROOT / "scripts"))
from make_exercises import BEGIN, student_notebook  # noqa: E402


def code_cells(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def folded_solutions():
    """Function name -> (imports, the solution that a notebook of the course folds below its cell to write in)."""
    modules = ("itertools", "math", "re", "numpy as np", "torch", "torch.nn.functional as F")
    imports = "".join(f"import {name}\n" for name in modules) + "from PIL import Image\n"
    imports += "from cppo_ref.rewards import extract_boxed as last_box\n"
    folded = re.compile(r"<details><summary>Solution</summary>\n\n```python\ndef my_(\w+)(.*?)\n```\n\n</details>", re.DOTALL)
    pages = [cell.source for path in COURSE for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    return {name: (imports, f"def {name}{rest}\n") for page in pages for name, rest in folded.findall(page)}


def solution_cells():
    """Function name -> (the notebook's imports and helpers, the solution's source)."""
    found = folded_solutions()
    for path in SOLUTIONS:
        cells = code_cells(path)
        helpers = "\n".join([cells[1], *(source for source in cells if source.startswith("def ") and BEGIN not in source)])
        for source in cells:
            if BEGIN in source:
                found[source.split("(")[0].removeprefix("def ")] = (helpers, source)
    return found


CELLS = solution_cells()


def run(name, source):
    """The function `name` as a student's cell defines it."""
    namespace = {}
    exec(CELLS[name][0], namespace)
    exec(source, namespace)
    return namespace[name]


def mutate(name, old, new):
    source = CELLS[name][1]
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in the solution of {name}"
    return run(name, source.replace(old, new))


# function: [(what the solution says, what the mutant says, how the diagnosis begins)]
MUTANTS = {
    "extract_boxed": [
        (
            "answer = None",
            'found = re.findall(r"\\\\boxed\\{((?:[^{}]|\\{(?:[^{}]|\\{[^{}]*\\})*\\})*)\\}", text)\n'
            "    return found[-1].strip() if found else None",
            "you allow braces two levels deep",
        ),
        (".strip()", '.replace(" ", "")', "you delete blanks inside the answer"),
        (".strip()", ".strip() or None", "an empty box is the last box"),
        ("answer = text", "answer = answer or text", "you return the first box"),
        ("depth == 0", 'text[end] == "}"', "you stop at the first closing brace behind each"),
        (
            "answer = None",
            'match = re.search(r"\\\\boxed\\{(.*)\\}", text)\n    return match and match[1].strip()',
            "you run to the last brace",
        ),
        ("answer = None", 'answer = ""', "without a box the result must be None"),
        (
            "answer = None",
            'found = re.findall(r"\\\\boxed\\{((?:[^{}]|\\{[^{}]*\\})*)\\}", text)\n'
            "    return found[-1].strip() if found else None",
            "you allow braces one level deep",
        ),
        (".strip()", "", "blanks around the answer"),
        ("depth = 1", "depth, answer = 1, None", "the last \\boxed{ never closes"),
        (
            "answer = None",
            'found = re.findall(r"\\\\boxed\\{([^}]*)\\}", text)\n    return found[-1].strip() if found else None',
            "you stop at the first closing brace;",
        ),
        (
            "answer = None",
            "answer, opened = None, []\n"
            "    for place, sign in enumerate(text):\n"
            '        if sign == "{":\n'
            "            opened.append(place + 1)\n"
            '        elif sign == "}" and opened:\n'
            "            begin = opened.pop()\n"
            '            if text[:begin].endswith("boxed{"):\n'
            "                answer = text[begin:place].strip()\n"
            "    return answer",
            "of nested boxes you take the outer one",
        ),
    ],
    "format_reward": [
        (
            'last_box(body.split("</think>")[1]) not in (None, "")',
            '"boxed{" in body.split("</think>")[1] and last_box(body) != ""',
            "an unclosed",
        ),
        (
            "body = text.strip()",
            'body = text.strip()\n    if not re.match(r"<think>.*</think>.*boxed", body):\n        return 0.0',
            "several lines fail",
        ),
        ('body.split("</think>")[1]', "body", "a box inside the thoughts counts"),
        ('not body.startswith("<think>")', '"<think>" not in body', "words before <think> pass"),
        (
            'body.count("<think>") != 1 or body.count("</think>") != 1:\n        return 0.0\n'
            '    return float(last_box(body.split("</think>")[1])',
            '"</think>" not in body:\n        return 0.0\n    return float(last_box(body.partition("</think>")[2])',
            "<think> and </think> may occur",
        ),
        (
            ' or body.count("</think>") != 1:\n        return 0.0\n    return float(last_box(body.split("</think>")[1])',
            ':\n        return 0.0\n    return float(last_box(body.partition("</think>")[2])',
            "</think> may occur once, too",
        ),
        (' or body.count("<think>") != 1', "", "<think> may occur once, too"),
        ('not in (None, "")', "is not None", "an empty \\boxed{} passes"),
        (
            'last_box(body.split("</think>")[1]) not in (None, "")',
            're.search(r"boxed\\{[^}]*[^ }][^}]*\\}", body.split("</think>")[1]) is not None',
            "any filled box passes",
        ),
        ('float(last_box(body.split("</think>")[1]) not in (None, ""))', "1.0", "you never ask for a box"),
        ("return 0.0\n    return float", "return 1.0\n    return 1.0 - float", "reversed"),
    ],
    "reward": [
        ("last_box(text) == answer", "answer in text", "hackable: you look for the answer anywhere"),
        ("last_box(text) == answer", 'f"{{{answer}}}" in text', "hackable: any box may be right"),
        ("last_box(text) == answer", 'answer in (last_box(text) or "")', "hackable: you ask whether the box contains"),
        ("last_box(text) == answer", "(last_box(text) or text.strip()) == answer", "hackable: without a box"),
        ("last_box(text) == answer", 'last_box(text) in (answer, answer + ".0")', "you accept 3.0 for 3"),
        (
            "last_box(text) == answer",
            '(last_box(text) or "").startswith(answer)',
            "hackable: you ask whether the box begins with",
        ),
        (
            "last_box(text) == answer",
            "last_box(text) is not None and last_box(text) in answer",
            "hackable: you ask whether the answer",
        ),
        ("0.9 * correct + 0.1", "0.1 * correct + 0.9", "weights swapped"),
        ("last_box(text) == answer", "answer.isdigit() and last_box(text) == answer", "you compare numbers"),
        (" + 0.1 * in_format(text)", "", "the format earns nothing"),
    ],
    "group_advantages": [
        (
            "    groups = rewards.view(-1, group_size)\n",
            "    groups = rewards.view(-1, group_size)\n"
            "    dead = groups.amax(dim=0) == groups.amin(dim=0)\n"
            "    return torch.where(dead, 0.0, (groups - groups.mean(dim=0)) / (groups.std(dim=0) + 1e-4)).flatten()\n",
            "wrong axis: you compared",
        ),
        (
            "    groups = rewards.view(-1, group_size)\n",
            "    groups = rewards.view(group_size, -1)\n"
            "    dead = groups.amax(dim=0) == groups.amin(dim=0)\n"
            "    return torch.where(dead, 0.0, (groups - groups.mean(dim=0)) / (groups.std(dim=0) + 1e-4)).flatten()\n",
            "wrong axis: the rows of one group",
        ),
        ("rewards.view(-1, group_size)", "rewards.view(1, -1)", "mean and std of the whole batch"),
        (
            "torch.where(alive, centered / (groups.std(dim=1, keepdim=True) + 1e-4), 0.0)",
            "(centered / groups.std(dim=1, keepdim=True))",
            "std without eps",
        ),
        (
            "torch.where(alive, centered / (groups.std(dim=1, keepdim=True) + 1e-4), 0.0)",
            "(centered / (groups.std(dim=1, keepdim=True) + 1e-4))",
            "rounding: equal rewards must get exactly 0",
        ),
        (" + 1e-4", "", "ε is missing"),
        ("groups.std(dim=1, keepdim=True)", "groups.std(dim=1, keepdim=True, correction=0)", "population std"),
        ("centered / (groups.std(dim=1, keepdim=True) + 1e-4)", "centered", "not divided by the group's std"),
        ("groups - groups.mean(dim=1, keepdim=True)", "groups.mean(dim=1, keepdim=True) - groups", "sign reversed"),
    ],
    "clipped_surrogate": [
        ("-torch.minimum", "torch.minimum", "sign reversed"),
        ("logprobs - old_logprobs", "old_logprobs - logprobs", "ratio upside down"),
        ("minimum", "maximum", "max instead of min"),
        (
            "torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])",
            "(clipped * advantages[:, None])",
            "only clipped",
        ),
        ("ratio.clamp(0.8, 1.2)", "ratio", "never clipped"),
        (
            "ratio * advantages[:, None], clipped * advantages[:, None]",
            "ratio * advantages, clipped * advantages",
            "wrong axis",
        ),
    ],
    "kl_to_reference": [
        ("ref_logprobs - logprobs", "logprobs - ref_logprobs", "direction reversed"),
        ("d.exp() - d - 1", "-d", "this is k1"),
        ("d.exp() - d - 1", "d**2 / 2", "this is k2"),
        (" - 1", "", "the −1 is missing"),
        ("d.exp() - d - 1", "d + 1 - d.exp()", "sign reversed"),
    ],
    "token_weights": [
        (
            "weights / weights.sum().clamp(min=1)\n"
            "    return weights / (weights.sum(dim=1, keepdim=True).clamp(min=1) * len(mask))",
            "weights / mask.numel()\n    return weights / mask.numel()",
            "padding counted",
        ),
        ("mask.float()", "torch.ones(mask.shape)", "mask forgotten"),
        ('== "token"', '!= "token"', '"token" and "sequence" swapped'),
        ('aggregation == "token"', "True", "both modes are the same"),
        ("keepdim=True).clamp(min=1)", "keepdim=True)", "a completion without tokens"),
        (" * len(mask)", "", 'in "sequence" each row sums to 1'),
    ],
    "hide_quarter": [
        (
            "rng.integers(height - h + 1)",
            "(__import__('random').seed(int(rng.integers(99))), __import__('random').randrange(height - h + 1))[1]",
            "it draws from Python's global generator",
        ),
        (
            "rng.integers(height - h + 1)",
            "(__import__('torch').manual_seed(int(rng.integers(99))), int(__import__('torch').randint(height - h + 1, ())))[1]",
            "it draws from torch's global generator",
        ),
        ("Image.fromarray(pixels)", "pixels", "it must return a PIL image"),
        ("pixels = np.array(image)", "pixels = np.array(image)\n    image.paste((0, 0, 0), (0, 0, 3, 3))", "changed in place"),
        ("rng.integers(height - h + 1)", "np.random.randint(height - h + 1)", "it draws from numpy's global generator"),
        ("rng.integers(height - h + 1)", "np.random.default_rng().integers(height - h + 1)", "unseeded"),
        ("rng.integers(height - h + 1), rng.integers(width - w + 1)", "3, 4", "rng ignored"),
        ("top : top + h, left : left + w", "top : top + w, left : left + h", "wrong axis"),
        ("height // 2, width // 2", "height // 3, width // 2", "it must cover a quarter"),
        ("rng.integers(width - w + 1)", "rng.integers(width - w)", "off by one"),
        ("= 128", "= 0", "the rectangle must be grey"),
        (
            "pixels[top : top + h, left : left + w]",
            "pixels.reshape(-1, 3)[rng.permutation(height * width)[: h * w]]",
            "scattered",
        ),
        ("height // 2, width // 2", "height // 4, width", "the rectangle has another shape"),
        (
            "rng.integers(height - h + 1), rng.integers(width - w + 1)",
            "(height - h) * rng.integers(2), (width - w) * rng.integers(2)",
            "every place must be equally likely",
        ),
        (
            "rng.integers(height - h + 1), rng.integers(width - w + 1)",
            "int(rng.random() ** 2 * (height - h + 1)), int(rng.random() ** 2 * (width - w + 1))",
            "every place must be equally likely",
        ),
        (
            "rng.integers(height - h + 1), rng.integers(width - w + 1)",
            "(place := rng.random(), int(place * (height - h + 1)))[1], int(place * (width - w + 1))",
            "one draw for both axes",
        ),
    ],
    "dim": [
        (
            "rng.uniform",
            "(__import__('random').seed(int(rng.integers(999))), __import__('random'))[1].uniform",
            "it draws from Python's global generator",
        ),
        (
            "rng.uniform",
            "(__import__('torch').manual_seed(int(rng.integers(999))), rng)[1].uniform",
            "it draws from torch's global generator",
        ),
        (
            "1 - 0.5 * strength, 1 + 0.5 * strength",
            "1 - strength, 1 + strength",
            "at strength 1 the factor must spread over 0.5…1.5",
        ),
        ("Image.fromarray(np.clip(brighter, 0, 255).round().astype(np.uint8))", "brighter", "it must return a PIL image"),
        ("factor = rng", "image.putpixel((0, 0), (0, 0, 0))\n    factor = rng", "changed in place"),
        ("rng.uniform", "np.random.uniform", "it draws from numpy's global generator"),
        ("rng.uniform", "np.random.default_rng().uniform", "unseeded"),
        ("rng.uniform(1 - 0.5 * strength, 1 + 0.5 * strength)", "1 + 0.5 * strength", "rng ignored"),
        ("1 + 0.5 * strength)", "1 + 0.5 * strength, (image.height, image.width, 1))", "noise"),
        ("1 + 0.5 * strength)", "1 + 0.5 * strength, 3)", "one factor per channel"),
        ("np.clip(brighter, 0, 255)", "(brighter % 256)", "wrapped round"),
        ("1 - 0.5 * strength, 1 + 0.5 * strength", "0.5, 1.5", "strength ignored"),
        ("1 - 0.5 * strength, 1 + 0.5 * strength", "0.9 - 0.5 * strength, 0.9 + 0.5 * strength", "at strength 0"),
        ("1 - 0.5 * strength, 1 + 0.5 * strength", "1 - 0.5 * strength, 1", "at strength 1"),
        ("1 - 0.5 * strength, 1 + 0.5 * strength", "1 - 0.5 * strength**2, 1 + 0.5 * strength**2", "at strength 0.5"),
        ("* factor", "+ 100 * (factor - 1)", "added, not multiplied"),
        (
            "rng.uniform(1 - 0.5 * strength, 1 + 0.5 * strength)",
            "rng.choice([1 - 0.5 * strength, 1 + 0.5 * strength])",
            "the factor is not uniform",
        ),
    ],
    "covered_share": [
        (
            "(np.asarray(original) != np.asarray(view)).any(axis=-1)",
            'np.asarray(original.convert("L")) != np.asarray(view.convert("L"))',
            "grey values compared",
        ),
        (
            "(np.asarray(original) != np.asarray(view)).any(axis=-1)",
            "np.asarray(original).sum(axis=-1) != np.asarray(view).sum(axis=-1)",
            "sums of the channels",
        ),
        (".mean(axis=(1, 3))", ".mean(axis=(1, 3)).T", "wrong axis"),
        (".any(axis=-1)", ".mean(axis=-1)", "channels counted one by one"),
        (".any(", ".all(", "a pixel counts if any channel changed"),
        ("!=", "<", "only brighter pixels"),
        ("!=", ">", "only darker pixels"),
        ("changed.reshape", "(~changed).reshape", "reversed"),
        ("return changed", "return 100 * changed", "percent"),
        (".mean(axis=(1, 3))", ".sum(axis=(1, 3)) / changed.size", "divide by the pixels of the cell"),
    ],
    "token_entropy": [
        (
            "torch.special.entr(probabilities).sum(dim=-1)",
            "-(probabilities.clamp(min=1e-45) * probabilities.clamp(min=1e-45).log2()).sum(dim=-1)",
            "bits for nats",
        ),
        ("return torch", "return -torch", "sign reversed"),
        ("softmax(dim=-1)", "softmax(dim=1)", "wrong axis"),
        ("torch.special.entr(probabilities)", "-(probabilities * probabilities.log())", "NaN"),
        ("torch.special.entr(probabilities)", "-(probabilities * logits.clamp(min=-1e9))", "you multiplied by the logits"),
        (".sum(dim=-1)", ".mean(dim=-1)", "mean over the vocabulary"),
    ],
    "entropy_shift": [
        ("removed_entropy - entropy", "entropy - removed_entropy", "sign reversed: you computed H(I) − H(I⁻)"),
        ("torch.where(completion_mask, removed_entropy - entropy, 0.0)", "removed_entropy - entropy", "mask forgotten"),
        (
            "torch.where(completion_mask, removed_entropy - entropy, 0.0)",
            "(removed_entropy - entropy) * completion_mask",
            "masked by a product",
        ),
        ("removed_entropy - entropy", "(removed_entropy - entropy).relu()", "negative shifts must stay"),
        ("removed_entropy - entropy", "(removed_entropy - entropy).abs()", "absolute value"),
    ],
    "select_perception_tokens": [
        ("shift > 0", "shift >= 0", "ΔH = 0 counts for you"),
        ("rank < k", "rank <= k", "one token too many"),
        ("order.argsort(dim=-1)", "order", "one argsort lists positions"),
        ("completion_mask & (shift > 0)", "shift > 0", "mask forgotten"),
        ("candidates.sum", "completion_mask.sum", "k counts a share of the tokens with ΔH > 0"),
        (
            "torch.ceil(top_fraction * candidates.sum(dim=-1, keepdim=True))",
            "torch.floor(top_fraction * candidates.sum(dim=-1, keepdim=True)).clamp(min=1)",
            "rounded down: k",
        ),
        (
            "torch.ceil(top_fraction * candidates.sum(dim=-1, keepdim=True))",
            "torch.round(top_fraction * candidates.sum(dim=-1, keepdim=True)).clamp(min=1)",
            "rounded to the nearest",
        ),
        ("torch.ceil", "torch.floor", "rounded down to nothing"),
        ("completion_mask & (shift > 0)", "completion_mask", "tokens without a positive shift"),
        (
            "-torch.inf).argsort(dim=-1, descending=True",
            "torch.inf).argsort(dim=-1, descending=False",
            "you kept the smallest shifts",
        ),
        (
            "rank = order",
            "last = shift.masked_fill(~candidates, -torch.inf).flip(-1).argsort(dim=-1, descending=True, stable=True)\n"
            "    order = shift.shape[-1] - 1 - last\n    rank = order",
            "ties go to the earlier token",
        ),
        (
            "candidates & (rank < k)",
            "candidates & (shift >= shift.masked_fill(~(candidates & (rank < k)), torch.inf).amin(dim=-1, keepdim=True))",
            "all ties at the threshold",
        ),
        (
            "    candidates = completion_mask & (shift > 0)",
            "    if len(shift) > 1:\n"
            "        rows = select_perception_tokens(shift.view(1, -1), completion_mask.view(1, -1), top_fraction)\n"
            "        return rows.view(shift.shape)\n"
            "    candidates = completion_mask & (shift > 0)",
            "wrong axis",
        ),
    ],
    "view_kl": [
        (
            "logits.log_softmax(dim=-1), logits_view.log_softmax(dim=-1)",
            "logits_view.log_softmax(dim=-1), logits.log_softmax(dim=-1)",
            "direction reversed",
        ),
        (".sum(dim=-1)", ".sum(dim=-1) / torch.tensor(2.0).log()", "bits for nats"),
        ("original - view", "view - original", "sign reversed"),
        (
            "logits.log_softmax(dim=-1), logits_view.log_softmax(dim=-1)",
            "logits.log_softmax(dim=1), logits_view.log_softmax(dim=1)",
            "wrong axis",
        ),
        (".sum(dim=-1)", ".mean(dim=-1)", "mean over the vocabulary"),
        ("original.exp() * (original - view)", "original.exp() * (logits - logits_view)", "the difference of logits"),
    ],
    "contrastive_loss": [
        (
            "kl_preserved[selected] - kl_removed[selected]",
            "kl_removed[selected] - kl_preserved[selected]",
            "positive and negative swapped",
        ),
        (
            "(kl_preserved[selected] - kl_removed[selected]) / tau)\n    return contrast.sum() / max(int(selected.sum()), 1)",
            "(kl_preserved - kl_removed) / tau)\n    return contrast.mean()",
            "mask forgotten",
        ),
        ("int(selected.sum())", "selected.numel()", "averaged over all tokens"),
        (
            "(kl_preserved[selected] - kl_removed[selected]) / tau)",
            "(kl_preserved - kl_removed) / tau) * selected",
            "masked by a product",
        ),
        ("contrast.sum() / max(int(selected.sum()), 1)", "contrast.mean()", "mean of nothing"),
        (" / max(int(selected.sum()), 1)", "", "sum instead of mean"),
        ("return contrast.sum()", "return contrast.sum().item()", "no gradient"),
        ("return contrast.sum()", "return contrast.detach().sum()", "no gradient"),
        (
            "    contrast = F",
            "    if len(selected) > 1:\n"
            "        cut = zip(kl_preserved.split(1), kl_removed.split(1), selected.split(1), strict=True)\n"
            "        return sum(contrastive_loss(*row, tau) for row in cut) / len(selected)\n"
            "    contrast = F",
            "mean of row means",
        ),
        ("/ tau", "* tau", "multiplied by τ"),
        (
            "F.softplus((kl_preserved[selected] - kl_removed[selected]) / tau)",
            "(1 + ((kl_preserved[selected] - kl_removed[selected]) / tau).exp()).log()",
            "overflow",
        ),
    ],
    "gated_loss": [
        (
            "exact_kl(anchor, logits_preserved), exact_kl(anchor, logits_removed)",
            "exact_kl(anchor, logits_removed), exact_kl(anchor, logits_preserved)",
            "the views are swapped",
        ),
        ("selected & (advantages > 0)[:, None]", "selected", "gate dropped"),
        ("(advantages > 0)", "(advantages >= 0)", "the gate opens at A = 0"),
        (
            "return cpl(exact_kl(anchor, logits_preserved), exact_kl(anchor, logits_removed), gated, tau=0.1)",
            "views = exact_kl(anchor, logits_preserved), exact_kl(anchor, logits_removed)\n"
            "    cut = zip(*(part.split(1) for part in (*views, gated)), strict=True)\n"
            "    rows = [cpl(*row, tau=0.1) for row in cut if row[-1].any()]\n"
            "    return sum(rows) / max(len(rows), 1)",
            "mean of row means",
        ),
        ("(advantages > 0)", "(advantages < 0)", "gate reversed"),
        ("logits.detach()", "logits", "detach missing"),
        (
            "logits.detach()",
            "logits\n    logits_preserved, logits_removed = logits_preserved.detach(), logits_removed.detach()",
            "wrong side detached",
        ),
        ("gated, tau=0.1)", "gated, tau=0.1) * gated.sum() / selected.sum().clamp(min=1)", "divided by all selected tokens"),
        (
            "gated, tau=0.1)",
            "gated, tau=0.1) * (gated * advantages[:, None]).sum() / gated.sum().clamp(min=1)",
            "the gate is open or shut",
        ),
    ],
    "micro_batch_losses": [
        ("losses[kept].sum() / tokens", "losses[kept].mean()", "mean per micro-batch"),
        ("losses[kept].sum() / tokens", "losses[kept].mean() / len(mask.split(size))", "mean of means"),
        ("mask.sum()", "mask.numel()", "padding counted"),
        ("losses[kept]", "losses", "mask forgotten"),
        ("losses[kept].sum()", "(losses * kept).sum()", "masked by a product"),
        ("mask.sum()", "len(mask)", "divided by rows"),
    ],
    "total_loss": [
        ("grpo + cpl_weight", "grpo - cpl_weight", "sign reversed: CPL"),
        ("+ kl_weight", "- kl_weight", "sign reversed: the KL"),
        ("def mean", "kl_weight, cpl_weight = cpl_weight, kl_weight\n\n    def mean", "β and λ swapped"),
        ("selected & (advantages > 0)[:, None]", "selected", "gate dropped"),
        ("mean(contrast, gated)", "contrast[gated].sum() / completion_mask.sum()", "CPL is a mean over the gated"),
        ("mean(contrast, gated)", "contrast[gated].sum()", "sum instead of mean"),
        ("mean(contrast, gated)", "contrast[gated].sum() / gated.any(dim=1).sum().clamp(min=1)", "divided by gated rows"),
        ("mean(contrast, gated)", "mean(contrast * advantages[:, None], gated)", "multiplied by A"),
        (
            "grpo = mean(surrogate, completion_mask) + kl_weight * mean(kl, completion_mask)",
            "tokens = surrogate + kl_weight * kl\n"
            "    grpo = sum(row[kept].mean() for row, kept in zip(tokens, completion_mask, strict=True)) / len(tokens)",
            "mean of row means in the GRPO terms",
        ),
        (
            "return values[mask].sum() / mask.sum().clamp(min=1)",
            "return ((values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()",
            "mean of row means: a token of a short row",
        ),
        (
            "mask.sum().clamp(min=1)",
            "(mask.numel() if mask is completion_mask else mask.sum().clamp(min=1))",
            "padding counted",
        ),
        (
            "values[mask].sum() / mask.sum().clamp(min=1)",
            "values.mean() if mask is completion_mask else values[mask].sum() / mask.sum().clamp(min=1)",
            "mask forgotten",
        ),
        (".clamp(min=1)", "", "mean of nothing"),
    ],
    "rows_to_perturb": [
        (
            "(alive & (groups > groups.mean(dim=1, keepdim=True)))",
            "(groups > 0)",
            "a fixed threshold: you ask for a reward above 0;",
        ),
        (
            "(alive & (groups > groups.mean(dim=1, keepdim=True)))",
            "(groups > 0.5)",
            "a fixed threshold: you ask for a reward above 0.5;",
        ),
        (
            "(alive & (groups > groups.mean(dim=1, keepdim=True)))",
            "(groups > 0.9)",
            "a fixed threshold: you ask for a reward above 0.9;",
        ),
        ("alive & (groups", "(groups", "rounding opened the gate"),
        ("(alive & (groups > groups", "((groups >= groups", "A ≥ 0 is not A > 0"),
        (
            "(alive & (groups > groups.mean(dim=1, keepdim=True)))",
            "(rewards > rewards.mean())",
            "compare with the mean of the group",
        ),
        ("groups.mean(dim=1", "groups.mean(dim=0", "wrong axis"),
        ("(alive & (groups > groups", "((groups < groups", "gate reversed"),
        ("groups > groups.mean", "groups != groups.mean", "rows with A < 0"),
    ],
    "lucky_share": [
        ("max(len(kept), 1)", "len(words)", "divided by all completions"),
        ("if r]", "if r or True]", "wrong answers counted as well"),
        ("not all(row)", "not any(row)", "one wrong word is enough"),
        ("not all(row)", "1 - sum(row) / len(row)", "a share of words"),
        ("not all(row)", "all(row)", "reversed"),
    ],
    "chart_reward": [
        ("0.05 * abs(truth)", "0.05 * abs(said)", "5 % of the answer, not of the box"),
        ("0.05 * abs(truth)", "0.05", "0.05 is no tolerance"),
        ("abs(said - truth)", "abs(abs(said) - abs(truth))", "the sign is lost"),
        ("abs(said - truth) <= 0.05 * abs(truth)", "not abs(said - truth) > 0.05 * abs(truth)", "hackable: nan"),
        ("abs(said - truth) <= 0.05 * abs(truth)", "said == truth", "numbers must be compared with a tolerance"),
        ('.strip().removesuffix("%")', "", "a percent sign"),
        ("box.lower() == answer.lower()", "box == answer", "words are compared without"),
        ("box.lower() == answer.lower()", "False", "an answer may be a word"),
    ],
    "pass_at_k": [
        ("1 - math.comb(n - c, k) / math.comb(n, k)", "1 - (1 - c / n) ** k", "drawn with replacement"),
        ("1 - math.comb(n - c, k) / math.comb(n, k)", "c / n", "this is avg@k"),
        ("1 - math", "math", "this is the chance that all k are wrong"),
        ("1 - math.comb(n - c, k)", "math.comb(c, k)", "this is the chance that all k are right"),
        ("1 - math.comb(n - c, k) / math.comb(n, k)", "min(1.0, k * c / n)", "a sum of chances"),
    ],
    "leave_one_out": [
        (
            "others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)",
            "others = groups.mean(dim=1, keepdim=True)",
            "the mean holds",
        ),
        ("(groups - others)", "((groups - others) / (groups.std(dim=1, keepdim=True) + 1e-4))", "not divided by the std"),
        (
            "(groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)",
            "(groups.sum(dim=0) - groups) / max(len(groups) - 1, 1)",
            "wrong axis",
        ),
        ("rewards.view(-1, group_size)", "rewards.view(1, -1)\n    group_size = len(rewards)", "the whole batch"),
        ("(group_size - 1)", "group_size", "the sum of the others is divided by G"),
        ("(groups - others)", "(others - groups)", "sign reversed"),
    ],
    "clipped_share": [
        (
            "((a > 0) & (ratio > 1 + clip_high)) | ((a < 0) & (ratio < 1 - clip_low))",
            "(ratio > 1 + clip_high) | (ratio < 1 - clip_low)",
            "both sides",
        ),
        (
            "((a > 0) & (ratio > 1 + clip_high)) | ((a < 0)",
            "((a < 0) & (ratio > 1 + clip_high)) | ((a > 0)",
            "the sides are exchanged",
        ),
        ("(logprobs - old_logprobs)", "(old_logprobs - logprobs)", "ratio upside down"),
        ("(silent & mask).sum() / mask.sum()", "silent.float().mean()", "padding counted"),
        ("ratio, a =", "clip_low, clip_high = clip_high, clip_low\n    ratio, a =", "clip_low and clip_high"),
    ],
    "prompts_to_sample": [
        (" + (1 - p) ** group_size", "", "groups in which all are wrong"),
        ("p**group_size + (1", "(1", "groups in which all are right"),
        ("math.ceil(", "int(", "rounded down"),
        ("math.ceil(", "round(", "rounded to the nearest"),
        ("live / (1 - dead)", "live * (1 + dead)", "of the groups that you add"),
    ],
    "turned_words": [
        ("np.rot90(grid, turns)", "np.rot90(grid, -turns)", "turned the other way"),
        ("np.rot90(grid, turns)", "np.rot90(grid, min(turns, 1))", "turned once at most"),
        ("np.rot90(grid, turns)", "(grid.T if turns % 2 else np.rot90(grid, turns))", "mirrored at the diagonal"),
        ("np.rot90(grid, turns)", "np.rot90(grid, turns)[::-1]", "upside down"),
        ("np.rot90(grid, turns)", "grid", "the words stay where they were"),
    ],
    "views_that_keep": [
        (
            "read(view(p, np.random.default_rng(i))) == read(p)",
            "view(p, np.random.default_rng(i)) == p",
            "the pictures need not be equal",
        ),
        ("all(read", "any(read", "one picture is not enough"),
        ("enumerate(pictures)", "enumerate(pictures[:1])", "you look at the first picture only"),
        ("if kept(view)", "if not kept(view)", "reversed"),
    ],
    "auroc": [
        (" + 0.5 * (gaps == 0).float()", "", "a tie is half a success: you count it as a failure"),
        ("0.5 * (gaps", "1.0 * (gaps", "a tie is half a success: you count it as a success"),
        ("gaps > 0", "gaps < 0", "reversed"),
        ("else 0.5", "else 0.0", "without a pair it is 0.5"),
        ("((gaps > 0).float() + 0.5 * (gaps == 0).float())", "((scores > 0) == truth).float()", "a threshold at 0"),
    ],
    "precision_recall": [
        (
            "hits = (selected & truth).sum()",
            "hits = (selected & truth).sum()\n    selected, truth = truth, selected",
            "precision and recall are swapped",
        ),
        ("selected & mask, truth & mask", "selected, truth", "padding counted"),
        (
            "    selected, truth = selected & mask, truth & mask\n",
            "    if len(mask) > 1:\n"
            "        rows = [precision_recall(s[None], t[None], m[None]) for s, t, m in zip(selected, truth, mask)]\n"
            "        return tuple(sum(values) / len(rows) for values in zip(*rows))\n"
            "    selected, truth = selected & mask, truth & mask\n",
            "mean over rows",
        ),
        (
            "hits = (selected & truth).sum()",
            "return ((selected == truth)[mask].float().mean().item(),) * 2\n    hits = 0",
            "accuracy is neither",
        ),
    ],
    "word_shifts": [
        (
            "return torch.zeros(int(word[-1]) + 1).index_add(0, word, shift)",
            "return torch.stack([shift[word == w].mean() for w in range(int(word[-1]) + 1)])",
            "sum, not mean",
        ),
        (
            "return torch.zeros(int(word[-1]) + 1).index_add(0, word, shift)",
            "return torch.stack([shift[word == w].max() for w in range(int(word[-1]) + 1)])",
            "sum, not maximum",
        ),
        ("return torch.zeros(int(word[-1]) + 1).index_add(0, word, shift)", "return shift[begins]", "only the first piece"),
        ("index_add(0, word, shift)", "index_add(0, word, shift)[:-1]", "the last word is missing"),
        ("word, shift)", "word, shift.abs())", "a fall is a fall"),
    ],
    "info_nce": [
        ("torch.cat([own, margins], dim=1).logsumexp(dim=1).mean()", "F.softplus(margins).mean()", "a mean of pairs"),
        ("torch.cat([own, margins], dim=1).logsumexp(dim=1).mean()", "F.softplus(margins).sum(dim=1).mean()", "a sum of pairs"),
        ("[own, margins]", "[margins]", "the positive is missing"),
        ("(kl_positive[:, None] - kl_negatives)", "(kl_negatives - kl_positive[:, None])", "positive and negatives swapped"),
        (" / tau", " * tau", "multiplied by τ"),
        (".logsumexp(dim=1)", ".exp().sum(dim=1).log()", "overflow"),
    ],
    "cpl_trouble": [
        ("sum(minus[:3]) / 3, sum(minus[-3:]) / 3", "minus[0], minus[-1]", "single steps jump"),
        ('"blind" if sum(plus[-3:]) < 0.5 * sum(plus[:3]) else ', "", "KL⁻ falls for two reasons"),
        ("< 0.5 * sum(plus[:3])", "< sum(plus[:3])", "a KL⁺ that falls a little"),
        ("first < 0.1", "last < 0.1", "a KL⁻ that is small at the end"),
        ("    if first < 0.1:", '    return "healthy"\n    if first < 0.1:', "the loss that a run reports"),
    ],
    "run_trouble": [
        ("    if gain", '    if sum(log["dead"][-3:]) / 3 > 0.8:\n        return "finished"\n    if gain', "dead groups alone"),
        ("    if gain", '    if max(log["kl"]) > 1:\n        return "too fast"\n    if gain', "one leap of KL"),
        (
            "    if gain",
            '    if gain("reward") > 0:\n        return "finished" if sum(log["dead"][-3:]) > 2.4 else "healthy"\n    if gain',
            "the reward alone",
        ),
        ('"hacked" if gain("reward") > 0 else "too fast"', '"hacked"', "accuracy falls for two reasons"),
        ('not 0.8 <= log["ratio"][0] <= 1.25', "False", "the ratio of surprise and entropy"),
    ],
    "global_mean": [
        ("sums.sum() / counts.sum().clamp(min=1)", "(sums / counts.clamp(min=1)).mean()", "a mean of means: a token weighs"),
        ("sums.sum() / counts.sum().clamp(min=1)", "(sums / counts).mean()", "a mean of means, and 0/0"),
        (".clamp(min=1)", "", "0/0 where no process has a token"),
        ("sums.sum() / counts.sum().clamp(min=1)", "sums.mean()", "divide by the number of tokens"),
        (" / counts.sum().clamp(min=1)", "", "this is the sum"),
        ("sums.sum() / ", "sums / ", "one number for each process"),
    ],
    "bytes_per_weight": [
        ("4 / 8", "4", "4 bits are half a byte"),
        ("1 / block + 4 / (block * group)", "8 / block + 32 / (block * group)", "bits and bytes are mixed"),
        (" + 4 / (block * group)", "", "the scales of the scales"),
        (" + 1 / block", "", "the scales are missing"),
        ("(block * group)", "group", "a second scale serves"),
    ],
    "cache_bytes": [
        ("2 * 2 *", "2 *", "keys *and* values"),
        ("2 * 2 *", "2 * 4 *", "16 bits are 2 bytes, not 4"),
        ("2 * 2 *", "2 * 16 *", "16 bits are 2 bytes: these"),
        (" * rows", "", "every row has a cache"),
    ],
    "t_interval": [
        ("(n - 1)", "n", "population std"),
        (" / n**0.5", "", "the spread of single differences"),
        ("n**0.5", "n", "divided by n"),
        ("variance**0.5", "variance", "variance for standard deviation"),
        ("mean - half, mean + half", "mean + half, mean - half", "the order is"),
    ],
    "sign_flip_p": [
        (
            "abs(patterns @ np.array(differences)) >= abs(sum(differences))",
            "patterns @ np.array(differences) >= sum(differences)",
            "one-sided",
        ),
        ("abs(sum(differences))", "sum(differences)", "the size of the observed sum"),
        ("- 1e-12", "+ 1e-12", "at least as far"),
        ("np.mean(", "np.sum(", "a share of the patterns"),
    ],
    "verdict": [
        ('"undecided"', '"equal"', "a large p is no proof"),
        ("abs(low) < 0.02 and abs(high) < 0.02", "False", "the margin comes first"),
        ("p >= 0.05", "False", "the interval alone"),
        (
            ' or low <= 0 <= high:\n        return "undecided"\n    return "helps" if low > 0',
            ':\n        return "undecided"\n    return "helps" if low + high > 0',
            "the test alone",
        ),
        ('"helps" if low > 0 else "hurts"', '"hurts" if low > 0 else "helps"', "helps and hurts"),
    ],
    "worth_an_update": [
        ("alive.any()", "alive.all()", "one live group is enough"),
        ("alive.any()", "alive[0]", "you look at the first group only"),
        ("groups.amax(dim=1) > groups.amin(dim=1)", "groups.std(dim=1) > 0", "rounding: the std of equal rewards"),
        ("kl_weight > 0 or ", "", "β forgotten"),
        ("kl_weight > 0 or bool(alive.any())", "bool(rewards.max() > rewards.min())", "compare within groups"),
        ("rewards.view(-1, group_size)", "rewards.view(-1, group_size).T", "wrong axis"),
        ("kl_weight > 0 or bool(alive.any())", "not (kl_weight > 0 or bool(alive.any()))", "reversed"),
        ("kl_weight > 0 or", "kl_weight > 0 and", "with β > 0 or a live group"),
    ],
}
EVERY_MUTANT = [pytest.param(name, *mutant, id=f"{name}: {mutant[2]}") for name in MUTANTS for mutant in MUTANTS[name]]


def diagnosis(name, function):
    with pytest.raises(MistakeError) as caught:
        getattr(grading, f"check_{name}")(function)
    return str(caught.value)


def test_there_are_at_least_three_exercises_for_each_of_01_to_06():
    assert [path.name[:2] for path in SOLUTIONS] == ["01", "02", "03", "04", "05", "06"]
    assert len(CELLS) >= 24  # graded: in the exercises, or in a notebook before it shows the function
    for path in SOLUTIONS:
        text = path.read_text()
        assert text.count(BEGIN) >= 3
        for part in ("Difficulty ●", "Importance ●", " minutes", "<summary>Hint</summary>"):
            assert text.count(part) >= text.count(BEGIN), f"{path.name}: {part}"


def test_every_exercise_has_its_grader_and_mutants():
    assert {f"check_{name}" for name in CELLS} == set(grading.__all__) - {"MistakeError", "predicted", "written"}
    assert set(MUTANTS) == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_grader_passes_its_solution(name, capsys):
    solution = run(name, CELLS[name][1])
    capsys.readouterr()
    getattr(grading, f"check_{name}")(solution)
    assert capsys.readouterr().out.startswith(f"{name}: right in all ")


@pytest.mark.parametrize(("name", "old", "new", "begins"), EVERY_MUTANT)
def test_a_grader_names_the_planted_mistake(name, old, new, begins):
    assert diagnosis(name, mutate(name, old, new)).startswith(f"{name}: {begins}")


@pytest.mark.parametrize("name", CELLS)
def test_every_diagnosis_that_a_grader_can_give_is_given_to_a_mutant(name):
    check = inspect.unwrap(getattr(grading, f"check_{name}"))
    (table,) = [check.__globals__[n] for n in check.__code__.co_names if n.endswith(("_MISTAKES", "_SYMPTOMS"))]
    given = tuple(begins for *_, begins in MUTANTS[name])
    assert [known for known in table if not known.startswith(given)] == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_student_notebook_is_what_the_script_makes(path):
    committed = (EXERCISES / path.name).read_text()
    assert committed == student_notebook(path), "run: make exercises"


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_stub_raises_and_its_grader_rejects_it(path):
    stubs = [source for source in code_cells(EXERCISES / path.name) if "raise NotImplementedError" in source]
    assert len(stubs) >= 3
    for source in stubs:
        name = source.split("(")[0].removeprefix("def ")
        assert "SOLUTION" not in source and inspect.cleandoc(source).count("\n") <= 4
        function = run(name, source)
        with pytest.raises(NotImplementedError):
            function(*inspect.signature(function).parameters)
        assert diagnosis(name, function).startswith(f"{name} is still the stub")


def test_the_student_notebook_shows_no_solution_unfolded():
    for path in SOLUTIONS:
        for cell in nbformat.reads(student_notebook(path), as_version=4).cells:
            assert BEGIN not in cell.source
            if cell.cell_type == "code":
                assert cell.outputs == [] and cell.execution_count is None
            elif "```python" in cell.source:
                assert cell.source.startswith("<details><summary>Solution</summary>")


def functions_above(name):
    """The functions of all code cells that stand above the place where `name` is asked for, by their own names."""
    chapters = {path.name: code_cells(path) for path in COURSE}
    pages = [*chapters.values(), *((chapters[path.name] + code_cells(path)) for path in SOLUTIONS)]
    asked = re.compile(rf"def (my_)?{name}\(")
    page = next(page for page in pages if any(asked.match(cell) and ("your code" in cell or BEGIN in cell) for cell in page))
    place = next(i for i, cell in enumerate(page) if asked.match(cell))
    sources = [
        ast.unparse(node) for cell in page[:place] if "%pip" not in cell for node in ast.parse(cell).body if is_function(node)
    ]
    namespace = {}
    exec(CELLS[name][0], namespace)
    for source in sources:
        exec(source, namespace)
    return [namespace[source.split("def ")[1].split("(")[0]] for source in sources]


def is_function(node):
    return isinstance(node, ast.FunctionDef) and not node.decorator_list


@pytest.mark.parametrize("name", CELLS)
def test_no_function_of_a_cell_above_answers_it(name):
    for copied in functions_above(name):
        with pytest.raises(MistakeError):
            getattr(grading, f"check_{name}")(copied)


def test_an_error_without_a_known_cause_shows_case_result_and_expectation():
    text = diagnosis("entropy_shift", lambda h, removed, mask: torch.where(mask, removed - h + 0.5, 0.0))
    assert text == ("<lambda>, rises by 1, stays, falls by 1.5: the result is [[1.5, 0.5, -1]], expected [[1, 0, -1.5]]")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda h, removed, mask: None, "the result is None (is `return` missing?), expected a tensor of shape [1, 3]"),
        (lambda h, removed, mask: (removed - h).sum(dim=1), "the result has shape [1], expected [1, 3]"),
        (lambda h, removed, mask: mask, "the result has dtype torch.bool, expected torch.float32"),
        (lambda h, removed, mask: removed.sub_(h).mul_(mask), "changed in place"),
    ],
)
def test_wrong_kinds_of_result_are_named(function, sentence):
    assert sentence in diagnosis("entropy_shift", function)


def test_an_exception_of_the_student_is_one_sentence():
    text = diagnosis("entropy_shift", lambda h, removed, mask: 1 / 0)
    line = '`text = diagnosis("entropy_shift", lambda h, removed, mask: 1 / 0)`'
    assert text.startswith("<lambda>, rises by 1, stays, falls by 1.5: raises ZeroDivisionError in line ")
    assert text.endswith(f" of its cell, {line}: division by zero")


def test_the_graders_do_not_use_the_functions_that_they_grade():
    for chapter in [path.stem for path in (ROOT / "cppo_ref" / "grading").glob("*.py")]:
        source = (ROOT / "cppo_ref" / "grading" / f"{chapter}.py").read_text()
        imported = [line for line in source.splitlines() if line.startswith(("from cppo_ref", "import cppo_ref"))]
        assert all(line.startswith("from cppo_ref.grading") for line in imported)
    for path in (ROOT / "cppo_ref").glob("*.py"):
        assert "grading" not in path.read_text(), f"{path.name}: the core knows nothing of the graders"


def test_what_a_notebook_shows_of_a_diagnosis_is_the_diagnosis():
    assert MistakeError("sign reversed")._render_traceback_() == ["✗ sign reversed"]


def test_grade_takes_no_tolerance_for_a_boolean():
    with pytest.raises(MistakeError):
        grade(lambda x: not x, [Case("true stays true", (True,), True)], {}, lambda x: x)
    assert shown(torch.tensor([[0.12345, 1.0]])) == "[[0.1235, 1]]"
