"""The memory estimate against counted tensors and published sizes; profiles, audit and what to lower when memory runs out."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families
import torch
from tiny_families import TYPES, make_family

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.step import cppo_step
from cppo_ref.training import train
from cppo_ref.vlm import memory
from cppo_ref.vlm.audit import PARTS, audit
from cppo_ref.vlm.memory import advice, estimate, measure, peak
from cppo_ref.vlm.peaks import LiveTensors
from cppo_ref.vlm.policy import Policy, policy_for
from cppo_ref.vlm.profiles import CAPACITY, PROFILES
from cppo_ref.vlm.quantization import model_config, skeleton

# published sizes in millions: all weights, language linears, embeddings
PUBLISHED = {
    "InternVL3-1B": (938, 357, 135),
    "Qwen2.5-VL-3B": (3755, 2774, 311),
    "Qwen3-VL-2B": (2128, 1409, 311),
    "Qwen3-VL-4B": (4438, 3633, 388),
    "SmolVLM-256M": (256, 106, 28),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_known_architectures_have_their_published_sizes(name):
    model = skeleton(model_config(name), CPPOConfig())
    size = measure(model)
    total, language, embeddings = PUBLISHED[name]
    assert round(model.total_weights / 1e6) == total
    assert size.nf4_weights // 10**6 == language
    assert size.vocabulary * size.hidden // 10**6 == embeddings
    assert size.nf4_weights + size.other_weights == model.total_weights


def test_adapters_and_images_counted_by_hand():
    """SmolVLM-256M: 30 blocks of 576 → 1536 wide layers, 12 vision blocks of 768 → 3072; 512² / 16² patches, 4² to a token."""
    size = measure(skeleton(model_config("SmolVLM-256M"), CPPOConfig(lora_rank=16)))
    language = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)  # q o, k v, gate up down
    vision = 4 * (768 + 768) + 2 * (768 + 3072)
    assert size.adapter_weights == 16 * (30 * language + 12 * vision)
    assert (size.patches, size.image_tokens) == (1024, 64)
    assert (size.cache_width, size.query_width) == (3 * 64, 9 * 64)
    intern = measure(skeleton(model_config("OpenGVLab/InternVL3-1B-hf"), CPPOConfig()))
    assert (intern.patches, intern.image_tokens) == (32 * 32, 16 * 16)
    qwen = measure(skeleton(model_config("Qwen2.5-VL-3B"), CPPOConfig()), 448 * 448)
    assert (qwen.patches, qwen.image_tokens) == (1024, 256)


@pytest.fixture
def wide(monkeypatch):
    """Tiny families wide enough for weights and activations to outweigh the odds and ends."""
    larger = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 32}
    monkeypatch.setattr(tiny_families, "TEXT", tiny_families.TEXT | larger)
    vision = {"depth": 4, "hidden_size": 128, "intermediate_size": 384, "out_hidden_size": 256}
    table = {kind: tiny_families.VISION[kind] | vision for kind in ("qwen2_5_vl", "qwen3_vl", "qwen3_5")}
    table["qwen2_vl"] = tiny_families.VISION["qwen2_vl"] | {"depth": 4, "embed_dim": 128, "mlp_ratio": 3, "hidden_size": 256}
    types = ["linear_attention", "linear_attention", "full_attention"] * 2
    monkeypatch.setattr(tiny_families, "LINEAR", tiny_families.LINEAR | {"layer_types": types})
    monkeypatch.setattr(tiny_families, "VISION", tiny_families.VISION | table)


@pytest.mark.parametrize(
    ("kind", "dtype", "checkpointing", "micro"),
    [
        ("qwen3_vl", "bfloat16", True, 1),
        ("internvl", "bfloat16", True, 1),
        ("qwen3_5", "float32", False, 2),  # in bfloat16 the update needs 25.3% more: linear attention counts as full
        ("qwen2_5_vl", "float32", False, 2),  # the update is one micro-batch: I⁻ is computed with its graph, once
    ],
)
def test_the_estimate_is_near_the_tensors_that_a_step_holds(wide, tmp_path, monkeypatch, kind, dtype, checkpointing, micro):
    """A step of full-length completions, phase by phase, every live tensor counted; docs/usage.md says "within a quarter"."""
    folder = make_family(kind, tmp_path)
    run = CPPOConfig(
        model=str(folder),
        prompts_per_step=1,
        group_size=2,
        max_new_tokens=40,
        micro_batch_size=micro,
        rollout_batch_size=2,
        advantage_gate=False,
        activation_checkpointing=checkpointing,
        dtype=dtype,
    )
    image = split_rows("test", count=1)[0]["image"].resize((168, 168))
    rows = [{"image": image, "question": "how many ?", "answer": "1"}]
    monkeypatch.setattr(Policy, "forbidden_ids", [2, *range(40, 44)])  # no end of sequence, no image: full length
    # a random model hardly looks: without this no token would be selected, and no view scored
    monkeypatch.setattr("cppo_ref.step.select_perception_tokens", lambda shift, removed_entropy, mask, **_: mask)
    with LiveTensors() as live:
        policy = policy_for(run)
        loaded = live.live
        optimizer = torch.optim.AdamW(policy.trainable, lr=1e-3)
        for step in range(2):
            metrics, batch = cppo_step(policy, optimizer, rows, run, step)
    assert batch.rollouts.completion_mask.all()
    size = measure(skeleton(model_config(str(folder)), run), 168 * 168)
    question = batch.rollouts.prompts.inputs["input_ids"].shape[1] - size.image_tokens
    expected = estimate(size, run, width=4 if dtype == "float32" else 2, question_tokens=question)
    peaks = {"load": loaded, **metrics.peak_bytes}
    assert metrics.scalars()["gigabytes/update"] == peaks["update"] / 1e9
    for phase in ("load", "rollouts", "reference", "detection", "update"):
        assert peaks[phase] == pytest.approx(expected[phase], rel=0.25), phase


def test_live_tensors_counts_storages_once_and_forgets_them():
    with LiveTensors() as live:
        a = torch.zeros(1000)  # 4000 bytes
        b = a[:500].view(5, 100)  # the same storage
        c = a + 1
        assert live.live == 8000
        del c
        assert (live.live, live.peak) == (4000, 8000)
        a.add_(1)
        assert live.live == 4000
        del a, b
    assert live.live == 0


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_fit_their_gpu_with_room_to_spare_and_say_how_much(name):
    run = CPPOConfig(**PROFILES[name])
    needed = peak(measure(skeleton(model_config(run.model), run), run.max_pixels), run)
    assert needed < 0.6 * CAPACITY[name]
    source = Path(memory.__file__).with_name("profiles.py").read_text()
    comment = re.search(rf'((?:    #.*\n)+)    "{name}"', source)
    assert comment and f"{needed / 1e9:.2f} GB" in comment[1]


def test_the_papers_model_fits_12_gb():
    run = CPPOConfig(**PROFILES["12gb-3b"])
    assert run.model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (run.group_size, run.max_new_tokens, run.max_pixels) == (8, 512, 448 * 448)
    assert peak(measure(skeleton(model_config(run.model), run), run.max_pixels), run) < 0.8 * 12e9


@pytest.mark.parametrize("kind", TYPES)
def test_the_audit_shows_no_4_bit_layer_outside_the_language_model(kind, tmp_path, capsys):
    assert main(["audit", "--model", str(make_family(kind, tmp_path))]) == 0
    rows = {line[:14].strip(): line[26:].split() for line in capsys.readouterr().out.splitlines() if line[:14].strip() in PARTS}
    assert set(rows) == set(PARTS)
    for part, (layers, quantised, kept, adapted) in rows.items():
        assert int(quantised) == (int(layers) if part == "language model" else 0), part
        assert int(quantised) + int(kept) == int(layers)
        assert (int(adapted) > 0) == (part in ("language model", "vision tower"))


def test_the_audit_of_a_profile_and_its_errors(capsys):
    assert "profile 12gb: 52% of 12 GB" in audit(CPPOConfig(**PROFILES["12gb"]), "12gb")
    assert main(["audit", "--profile", "9gb"]) == 2
    assert "profile is '9gb', expected one of 8gb, 12gb, 12gb-3b, t4, 24gb" in capsys.readouterr().err
    assert main(["audit", "--model", "nowhere/at-all"]) == 2
    assert "model 'nowhere/at-all' not found" in capsys.readouterr().err


def test_options_win_over_the_profile(capsys):
    assert main(["audit", "--profile", "8gb", "--max_new_tokens", "99", "--model", "SmolVLM-256M"]) == 0
    out = capsys.readouterr().out
    assert "completions of 99" in out and out.startswith("SmolVLM-256M")


def test_advice_names_the_change_that_saves_most_and_how_much():
    run = CPPOConfig(**{**PROFILES["12gb"], "activation_checkpointing": False})
    config = model_config(run.model)
    text = advice(config, run)
    saved = [float(number) for number in re.findall(r"saves about ([\d.]+) GB", text)]
    assert text.startswith("try --activation_checkpointing (saves about") and saved == sorted(saved, reverse=True)
    before, after = (
        peak(measure(skeleton(config, r), r.max_pixels), r) for r in (run, replace(run, activation_checkpointing=True))
    )
    assert saved[0] == pytest.approx((before - after) / 1e9, abs=0.06)


def test_out_of_memory_says_what_to_lower_and_keeps_the_run(tmp_path, monkeypatch):
    run = CPPOConfig(output=str(tmp_path / "run"), steps=3, eval_rows=0, prompts_per_step=2, group_size=2)

    def full_at_1(policy, optimizer, rows, config, step, **options):
        if step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cppo_step(policy, optimizer, rows, config, step, **options)

    monkeypatch.setattr("cppo_ref.training.cppo_step", full_at_1)
    saved = re.escape(str(tmp_path / "run" / "checkpoints" / "step-000001"))
    said = r"^the GPU's memory ran out in step 1: try .*--micro_batch_size 1 in place of 4 \(saves about [\d.]+ GB\)"
    said += f".*; --resume goes on from {saved} if only --micro_batch_size or --activation_checkpointing changes$"
    with pytest.raises(InputError, match=said):
        train(run, progress=False)
    monkeypatch.undo()
    resumed = train(replace(run, activation_checkpointing=True, micro_batch_size=1), resume=True, progress=False)
    whole = train(replace(run, output=str(tmp_path / "whole")), progress=False)
    assert [m["reward"] for m in resumed.history] == [m["reward"] for m in whole.history]
