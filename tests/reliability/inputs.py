"""What is read: completions, bombs, rows and images, settings, and the files of strangers."""

import functools
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from faults import finished
from harness import LOST, REFUSED, SURVIVED, Case, Ending, Test, command, scratch, train_words
from PIL import Image
from safetensors.torch import load_file, save_file

from cppo_ref import rewards
from cppo_ref.rewards import reward, undecided
from cppo_ref.runs.checks import RANGES
from cppo_ref.vlm.quantization import model_path

PIECES = [
    "\\frac",
    "\\sqrt",
    "\\text{",
    "\\boxed{",
    "</think>",
    "<think>",
    "\\left(",
    "\\infty",
    "9^",
    "10^{10}",
    "!",
    "\\binom",
]
PIECES += [*list("{}()[]$^_\\1x=%,+-./\n\x00�²٢"), "1/2", "0.5", "\\pi", "e^x", "\\log", "\\cdot", "\\%", "A", "B", "\u202e"]


def completions(number: int, rng: random.Random) -> Case:
    """A thousand things that a policy may write: each has a reward, and none raises. One in five reaches math-verify."""
    for _ in range(1000):
        inside = "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
        boxed, other = ("<think></think>\\boxed{%s}", "\\boxed{%s}"), ("%s", "<think>%s\\boxed{", f"\\boxed{{%s{'9' * 500}}}")
        text = rng.choice(boxed if rng.random() < 0.25 else other) % inside * rng.choice((1, 1, 1, 2, 50))
        earned = reward(text, rng.choice(("17",) * 20 + ("1/2", "A", "x^2")))
        if not any(math.isclose(earned, value) for value in (0.0, 0.1, 0.9, 1.0)):
            return Case(repr(text[:60]), LOST, str(earned), count=1000)
    return Case(f"thousand {number}", SURVIVED, count=1000)


def bombs(number: int, rng: random.Random) -> Case:
    """64 different answers that ask for endless work; the seconds are the CPU time of the worker and its children."""
    kinds: list[Callable[[int], tuple[str, str]]] = [
        lambda i: (f"9^{{9^{{9^{{{9 + i}}}}}}}", "2"),
        lambda i: (r"\log 0.5", f"10^{{1{i}}}"),
        lambda i: (f"10^{{1{i}000000}}", "2"),
        lambda i: (f"{i + 1}00000!", "1/2"),
        lambda i: (f"(x+1)^{{{i}1000}}", "x+1"),
        lambda i: (f"\\sum_{{i=1}}^{{10000000{i}}} i", "2"),
        lambda i: (f"\\binom{{{i + 1}00000}}{{50000}}", "1/2"),
        lambda i: ("\\frac{1}{" * (40 + i) + "2" + "}" * (40 + i), "1/2"),
    ]
    own = rewards.VERIFIER
    assert own.ask("1/2", "0.5")
    before = _cpu(own.worker.pid)  # type: ignore[union-attr]
    judged = []
    for i in range(8):
        for kind in kinds:
            candidate, answer = kind(i)
            judged.append((reward(f"\\boxed{{{candidate}}}", answer), undecided(f"\\boxed{{{candidate}}}", answer)))
    seconds = _cpu(own.worker.pid) - before  # type: ignore[union-attr]
    fine = all(earned == 0 for earned, _ in judged) and seconds <= 10
    return Case(f"{sum(u for _, u in judged)} undecided", SURVIVED if fine else LOST, str(judged[:9]), seconds, len(judged))


def _cpu(process: int) -> float:
    """Seconds of CPU time that a process and its ended children took."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


NUMBERS = sorted(RANGES)
WRONG = ("nan", "inf", "-inf", "1e308", "-1e308", "-1", str(2**64), "ten", "")


def bad_number(number: int, rng: random.Random) -> Case:
    """A setting that is no number, or none that it can be."""
    name, value = NUMBERS[number % len(NUMBERS)], WRONG[number // len(NUMBERS)]
    return _refused(f"--{name}={value}", command(["train", f"--{name}={value}"]))


def _refused(name: str, ending: Ending) -> Case:
    if ending.refused:
        return Case(name, REFUSED, ending.err.strip()[-300:])
    return Case(name, LOST, f"status {ending.status}: {ending.out[-200:]} {ending.err[-400:]}")


def _row(folder: Path, **changes: object) -> Path:
    """A JSONL file of one good row and one changed one."""
    Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "a.png")
    rows = [{"image": "a.png", "question": "how many red shapes?", "answer": "1"}]
    rows.append({**rows[0], **changes})  # type: ignore[dict-item]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def _image(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        make(folder / "b.tif")
        return _row(folder, image="b.tif")

    return build


def _outside(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "outside.png")
    return _row(inner, image="../outside.png")


def _csv(text: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        _row(folder)
        (folder / "rows.csv").write_text(text)
        return folder / "rows.csv"

    return build


def _pipe(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return _row(folder, image=name) if name.endswith("png") else folder / name

    return build


ROWS: dict[str, Callable[[Path], Path]] = {
    **{
        f"answer {v!r}": functools.partial(_row, answer=v)
        for v in (float("nan"), float("inf"), True, [1], {"a": 1}, None, "", " ")
    },
    **{f"question {v!r}": functools.partial(_row, question=v) for v in (None, "", 3, ["?"], "<image><image> ?")},
    **{f"image {v!r}": functools.partial(_row, image=v) for v in (None, "", "absent.png", "/etc/passwd", 7, [], "rows.jsonl")},
    "image outside of the folder": _outside,
    "image of floats": _image(
        lambda path: Image.fromarray(np.random.default_rng(0).random((9, 9), dtype=np.float32)).save(path)
    ),
    "image of several frames": _image(
        lambda path: Image.new("L", (9, 9)).save(path, save_all=True, append_images=[Image.new("L", (9, 9), 9)])
    ),
    "image of 81 megapixels": _image(lambda path: Image.new("L", (9000, 9000)).save(path, compression="tiff_deflate")),
    "image that is cut": _image(
        lambda path: (Image.effect_noise((99, 99), 9).save(path), path.write_bytes(path.read_bytes()[:500]))
    ),
    "image that is a pipe": _pipe("p.png"),
    "data that is a pipe": _pipe("p.jsonl"),
    "two columns of one name": _csv("image,question,answer,answer\na.png,?,1,2\n"),
    "answers of truth values": _csv("image,question,answer\na.png,?,True\na.png,?,False\n"),
    "answers that overflow": _csv("image,question,answer\na.png,?,1e999\na.png,?,2\n"),
    "a missing answer": _csv("image,question,answer\na.png,?,\na.png,?,2\n"),
    "no header": _csv("a.png,?,1\n"),
    "nothing but zeros": _csv("\x00" * 99),
    "a name that is a pattern": lambda folder: _row(folder).rename(folder / "r.jsonl").with_name("[r].jsonl"),
}


def bad_row(number: int, rng: random.Random) -> Case:
    """A row or a file that cannot be learned from is named before the first step."""
    name, build = list(ROWS.items())[number]
    finished()
    with scratch() as folder:
        data = build(folder)
        ending = command(train_words(folder / "run", data=data, steps=1, max_new_tokens=12))
        return _refused(name, ending)


class Planted:
    """What a hostile pickle runs."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.canary),))


@functools.cache
def small_run() -> Path:
    """A run whose files are then replaced."""
    return finished() / "partial"


CODE = "import os\nos.mkdir({canary!r})\nclass X:\n    pass\n"
TEMPLATE = "{{{{ cycler.__init__.__globals__.os.mkdir({canary!r}) }}}}"


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _strange_model(kind: str, canary: Path, folder: Path) -> list[str]:
    """A model folder with a payload, and the command that reads it."""
    model = Path(shutil.copytree(model_path("tiny"), folder / "model"))
    (model / "evil.py").write_text(CODE.format(canary=str(canary)))
    maps = {name: "evil.X" for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")}
    tokenizers = {"AutoTokenizer": ["evil.X", "evil.X"]}
    if kind == "unknown type with code":
        _edit(model / "config.json", model_type="evil", auto_map=maps)
    elif kind == "known type with code":
        _edit(model / "config.json", auto_map=maps, architectures=["X"])
    elif kind == "processor with code":
        _edit(model / "processor_config.json", auto_map=maps, processor_class="X")
    elif kind == "tokenizer with code":
        _edit(model / "tokenizer_config.json", auto_map=tokenizers, tokenizer_class="X")
    elif kind == "template with code":
        (model / "chat_template.jinja").write_text(TEMPLATE.format(canary=str(canary)))
    elif kind == "template without an end":
        (model / "chat_template.jinja").write_text("{% for i in range(10**9) %}x{% endfor %}")
    elif kind == "generation with code":
        (model / "custom_generate").mkdir()
        (model / "custom_generate/generate.py").write_text(CODE.format(canary=str(canary)))
    elif kind == "pickled weights":
        for weights in model.glob("*.safetensors"):
            weights.unlink()
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(canary)))
    return train_words(folder / "out", model=model, steps=1)


def _strange_run(kind: str, canary: Path, folder: Path) -> list[str]:
    """An adapter, a checkpoint or a dataset with a payload."""
    from cppo_ref.runs.manifest import seal

    run = Path(shutil.copytree(small_run(), folder / "run"))
    checkpoint, adapter = run / "checkpoints/step-000003", run / "adapter"
    if kind == "pickled optimizer":
        (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Planted(canary)))
        seal(checkpoint)
        return train_words(run, "--resume")
    if kind == "pickled optimizer in torch's format":
        torch.save({"state": Planted(canary)}, checkpoint / "optimizer.pt")
        seal(checkpoint)
        return train_words(run, "--resume")
    if kind == "pickled adapter":
        (adapter / "adapter_model.safetensors").unlink()
        (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Planted(canary)))
        seal(adapter)
    if kind == "adapter with code":
        _edit(adapter / "adapter_config.json", auto_mapping={"base_model_class": "X", "parent_library": "evil"})
        (adapter / "evil.py").write_text(CODE.format(canary=str(canary)))
        seal(adapter)
    if kind in ("dataset script", "dataset of pickles"):
        (folder / "data").mkdir()
        (folder / "data/data.py").write_text(CODE.format(canary=str(canary)))
        (folder / "data/rows.pkl").write_bytes(pickle.dumps(Planted(canary)))
        return train_words(folder / "out", data=folder / "data", steps=1)
    return ["evaluate", "--adapter", str(adapter), "--images", "1"]


MODELS = ["unknown type with code", "known type with code", "processor with code", "tokenizer with code", "template with code"]
MODELS += ["template without an end", "generation with code", "pickled weights"]
RUNS = ["pickled optimizer", "pickled optimizer in torch's format", "pickled adapter", "adapter with code", "dataset script"]
RUNS += ["dataset of pickles"]


def stranger(number: int, rng: random.Random) -> Case:
    """Files with code in them, with "y" typed at every question: the code never runs."""
    kind = [*MODELS, *RUNS][number]
    finished()
    with scratch() as folder:
        canary = folder / "canary"
        words = (_strange_model if kind in MODELS else _strange_run)(kind, canary, folder)
        ending = command(words, typed="y\n" * 20)
        if canary.exists():
            return Case(kind, LOST, "the code ran")
        return Case(kind, SURVIVED) if ending.status == 0 else _refused(kind, ending)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _tensors(path: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _nan(tensors: dict) -> None:
    for tensor in tensors.values():
        tensor.fill_(float("nan"))


BROKEN: list[tuple[str, str, Callable[[Path], object]]] = [
    *(
        (part, f"{part} {what}", change)
        for part in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
        for what, change in (("cut", _cut), ("empty", lambda p: p.write_text("")), ("a list", lambda p: p.write_text("[]")))
    ),
    *(
        (part, f"{part} absent", Path.unlink)
        for part in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja")
    ),
    ("model.safetensors", "weights cut", _cut),
    ("model.safetensors", "weights absent", Path.unlink),
    ("model.safetensors", "a tensor absent", lambda p: _tensors(p, lambda t: t.pop(min(t)))),
    ("model.safetensors", "a tensor of another shape", lambda p: _tensors(p, lambda t: t.update({min(t): torch.zeros(3)}))),
    ("model.safetensors", "NaN", lambda p: _tensors(p, _nan)),
    ("adapter_model.safetensors", "half an adapter", lambda p: _tensors(p, lambda t: [t.pop(n) for n in list(t)[::2]])),
    ("adapter_model.safetensors", "adapter with NaN", lambda p: _tensors(p, _nan)),
    ("adapter_model.safetensors", "adapter cut", _cut),
    (
        "adapter_model.safetensors",
        "adapter of another shape",
        lambda p: _tensors(p, lambda t: t.update({min(t): torch.zeros(3, 3)})),
    ),
    ("adapter_config.json", "adapter without a config", Path.unlink),
]


def broken_model(number: int, rng: random.Random) -> Case:
    """A model or an adapter that is not whole: one sentence, unless what is missing is not needed."""
    file, name, change = BROKEN[number]
    finished()
    with scratch() as folder:
        if file.startswith("adapter"):
            adapter = Path(
                shutil.copytree(small_run() / "adapter", folder / "adapter", ignore=shutil.ignore_patterns("manifest.json"))
            )
            change(adapter / file)
            return _refused(name, command(["evaluate", "--adapter", str(adapter), "--images", "1"]))
        model = Path(shutil.copytree(model_path("tiny"), folder / "model"))
        change(model / file)
        ending = command(train_words(folder / "out", model=model, steps=1))
        return Case(name, SURVIVED) if ending.status == 0 else _refused(name, ending)


TESTS = [
    Test("64 different bombs in one step", 0, 1, bombs, "s of CPU time"),
    Test("numbers that no setting can be", 20, len(NUMBERS) * len(WRONG), bad_number),
    Test("bad rows, images and data files", 4, len(ROWS), bad_row),
    Test("strangers' files with code in them", 3, len(MODELS + RUNS), stranger),
    Test("broken models and adapters", 3, len(BROKEN), broken_model),
    Test("hostile completions", 1, 100, completions, "s per 1000"),
]
