"""CPPOTrainer against `cppo_step`: one step of both on the same completions, on one process and two; and TRL's own shape."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from policies import nudge
from tiny_families import make_family
from torch.testing import assert_close
from trl import GRPOTrainer
from trl.trainer import utils
from trl_worker import LORA, make_trainer, two_steps

from cppo_ref import step
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.step import cppo_step
from cppo_ref.training import train
from cppo_ref.trl import OURS, CPPOTrainer, CPPOTrainerConfig
from cppo_ref.vlm.adapters import LoraOptions
from cppo_ref.vlm.policy import load_policy

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
FORWARD = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
FORWARD += ["compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes"]
FORWARD += ["num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"]
STATED = {  # what CPPOTrainer stands on: parameters of TRL's methods
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_tokenize_prompts": ["self", "prompts"],
    "_get_per_token_logps_and_entropies": FORWARD,
}


def by_length(text):
    """A reward that sets the completions of a model without any skill apart."""
    return len(text) % 3 / 2


def rewards(completions, **others):
    return [by_length(said[0]["content"]) for said in completions]


def our_step(monkeypatch, folder, quantize, rows, number=0, **settings):
    """`cppo_step`: (loss, gradient by parameter, batch, policy)."""
    monkeypatch.setattr(step, "reward", lambda text, answer: by_length(text))
    sizes = {"prompts_per_step": len(rows), "group_size": 4, "max_new_tokens": 20}
    config = CPPOConfig(model=str(folder), quantize=quantize, cpl_weight=0.5, max_grad_norm=1e9, **sizes, **settings)
    policy = nudge(load_policy(str(folder), quantize=quantize, lora=LoraOptions(**LORA)))
    metrics, batch = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, config, number)
    loss = metrics.policy_loss + config.kl_weight * metrics.kl + config.cpl_weight * metrics.cpl
    assert metrics.cpl > 0
    return loss, named(policy, gradient=True), batch, policy


def named(policy, gradient=False):
    found = {name: p.grad if gradient else p.data for name, p in policy.model.named_parameters() if p.requires_grad}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def completions_of(batch):
    found = zip(batch.rollouts.completion_ids, batch.rollouts.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in found]


def check_same(trainer, number, gradient):
    """The gradients of optimizer step `number` are these; a parameter that is in none of them has none."""
    got = trainer.gradients.steps[number]
    assert max(tensor.abs().max() for tensor in gradient.values()) > 1e-3
    for name in got.keys() | gradient.keys():
        zero = torch.zeros(())
        assert_close(got.get(name, zero), gradient.get(name, zero).expand_as(got.get(name, zero)), atol=1e-5, rtol=1e-5)


CASES = [
    ("llava", "none", {}),
    ("llava", "nf4", {"ranking": "normalized", "top_fraction": 0.3, "detach_anchor": False}),
    ("llava", "none", {"kl_estimator": "k3", "detach_anchor": False}),
    ("llava", "none", {"kl_estimator": "k1", "advantage_gate": False}),
    ("qwen2_5_vl", "none", {}),
    ("qwen3_vl", "nf4", {}),
    ("smolvlm", "none", {"removing": ["zoom_crop"]}),
]


@pytest.mark.parametrize(
    ("kind", "quantize", "settings"), CASES, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_a_step_has_the_loss_and_gradient_of_cppo_step(kind, quantize, settings, tmp_path, monkeypatch):
    folder, rows = make_family(kind, tmp_path), split_rows("test", count=2)
    loss, gradient, batch, policy = our_step(monkeypatch, folder, quantize, rows, **settings)
    options = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1, "cpl_weight": 0.5, **settings}
    trainer = make_trainer(
        rows, rewards, tmp_path / "run", model=str(folder), quantize=quantize, state=named(policy), **options
    )
    assert trainer.generation_config.suppress_tokens == policy.forbidden_ids
    trainer.given([completions_of(batch)]).train()
    assert trainer.last["selected"].sum() == batch.selected.sum()
    assert trainer.losses == pytest.approx([loss], abs=1e-5)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    check_same(trainer, 0, gradient)


def test_micro_batches_change_nothing_where_pixels_are_packed(tmp_path, monkeypatch):
    """TRL shuffles a batch and cuts it up; in Qwen's layout the pixels of all images lie in one row of patches."""
    folder, rows = make_family("qwen2_5_vl", tmp_path), split_rows("test", count=2)
    loss, gradient, batch, policy = our_step(monkeypatch, folder, "none", rows)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_generations": 4, "max_steps": 1}
    trainer = make_trainer(rows, rewards, tmp_path / "run", model=str(folder), state=named(policy), cpl_weight=0.5, **options)
    trainer.given([completions_of(batch)]).train()
    assert sum(trainer.losses) == pytest.approx(loss, abs=1e-5) and len(trainer.losses) == 4
    check_same(trainer, 0, gradient)
    assert trainer.state.log_history[0]["cpl"] > 0


def test_a_last_update_of_fewer_micro_batches_weighs_cpl_like_the_others(tmp_path, monkeypatch):
    """Three prompts, one a micro-batch, two an update: the second update has one."""
    rows = split_rows("test", count=3)
    policy = nudge(load_policy("tiny", quantize="none", lora=LoraOptions(**LORA)))
    ours = [our_step(monkeypatch, "tiny", "none", [row], number) for row, number in zip(rows, (0, 0, 1), strict=True)]
    options = {"per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = make_trainer(rows, rewards, tmp_path, state=named(policy), cpl_weight=0.5, steps_per_generation=1, **options)
    trainer.given([completions_of(batch) for _, _, batch, _ in ours]).train()
    assert trainer.losses[2] == pytest.approx(ours[2][0], abs=1e-5)
    check_same(trainer, 1, ours[2][1])


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    def run(folder, steps, resume=None):
        options = {"per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 1e-3, "save_strategy": "steps"}
        rows = split_rows("test", count=8)
        trainer = make_trainer(
            rows, rewards, folder, kind=CPPOTrainer, save_steps=2, max_steps=steps, cpl_weight=0.5, **options
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, first = run(tmp_path / "whole", 4), run(tmp_path / "parts", 2)
    second = run(tmp_path / "parts", 4, str(tmp_path / "parts" / "checkpoint-2"))
    assert [log["cpl"] for log in second.state.log_history[2:4]] == [log["cpl"] for log in whole.state.log_history[2:4]]
    for (name, want), (_, got) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(got, want), name
    assert not all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_two_processes_do_not_wait_for_each_other_and_have_the_gradient_of_one(tmp_path):
    """In each of the two steps only one of the processes has gated rows: were their forwards skipped there, both would hang."""
    command = [*TORCHRUN, str(ROOT / "tests" / "trl_worker.py"), str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    got, alone = torch.load(tmp_path / "gradients.pt"), two_steps(tmp_path / "one", processes=1).gradients
    for number in (0, 1):
        check_same(SimpleNamespace(gradients=alone), number, got[number])


def test_the_documented_command_trains_on_two_processes(tmp_path):
    page = (ROOT / "docs" / "many-gpus.md").read_text()
    line = next(line for line in page.replace("\\\n", "").splitlines() if "torchrun" in line and "--use_cpu" in line)
    words = line.split()[line.split().index("scripts/train_many.py") :]
    few = ["--output_dir", str(tmp_path), "--max_steps", "1", "--per_device_train_batch_size", "8", "--report_to", "none"]
    done = subprocess.run([*TORCHRUN, *words, *few], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    load_policy("tiny", adapter=str(tmp_path / "adapter"))


def test_the_tables_of_the_page_are_computed():
    sys.path.insert(0, str(ROOT / "scripts"))
    tables = importlib.import_module("many_gpus_table")
    page = tables.PAGE.read_text()
    assert tables.filled(page, "scripts/many_gpus_table.py", tables.BLOCKS) == page, "run scripts/many_gpus_table.py"


def test_our_own_trainer_says_who_trains_on_several_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = "there are 2 processes, and this trainer is for one: several train with CPPOTrainer, "
    said += "as in `torchrun --nproc_per_node 2 scripts/train_many.py` (docs/many-gpus.md)"
    with pytest.raises(InputError, match=re.escape(said)):
        train(CPPOConfig(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_without_trl_the_error_names_the_extra_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "cppo_ref.trl")
    said = 'CPPOTrainer stands on TRL, which is not installed: pip install "cppo_ref[trl]"'
    with pytest.raises(ImportError, match=re.escape(said)):
        importlib.import_module("cppo_ref.trl")
    for path in (ROOT / "cppo_ref").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert path.name == "trl.py" or not {"trl"} & {part for name in modules for part in name.split(".")}, path


def test_trl_is_as_we_know_it():
    """A canary: a new TRL that changed what CPPOTrainer extends or calls is named here, method by method."""
    now = {name: list(inspect.signature(getattr(GRPOTrainer, name)).parameters) for name in STATED}
    assert {name: found for name, found in now.items() if found != STATED[name]} == {}
    assert list(inspect.signature(utils.split_pixel_values_by_grid).parameters) == ["batch"]
    assert list(inspect.signature(utils.unsplit_pixel_values_by_grid).parameters) == ["batch"]
    source = inspect.getsource(GRPOTrainer)
    for name in ("current_gradient_accumulation_steps", "self._step %", "self._buffered_inputs", "num_items_in_batch"):
        assert name in source, name


def test_settings_have_the_names_the_defaults_and_the_help_of_ours(tmp_path):
    config, ours = CPPOTrainerConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), CPPOConfig()
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(CPPOConfig)}
    for field in (f for f in dataclasses.fields(config) if f.name in OURS):
        assert getattr(config, field.name) == getattr(ours, field.name) and field.metadata["help"] == helps[field.name]
    assert config.cppo == CPPOConfig(seed=config.seed)
    assert (config.beta, config.use_bias_correction_kl, config.loss_type) == (ours.kl_weight, False, "dapo")
    config.removing = ["fog"]
    with pytest.raises(InputError, match="removing is \\['fog'\\]"):
        _ = config.cppo


@pytest.mark.parametrize(("sharded", "estimator"), [({"is_fsdp_enabled": True}, "exact"), ({}, "k3")])
def test_the_exact_kl_is_refused_where_the_head_is_sharded(sharded, estimator, monkeypatch, tmp_path):
    trainer = make_trainer(split_rows("test", count=1), rewards, tmp_path, per_device_train_batch_size=4, num_generations=4)
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self, args: vars(self).update(vars(trainer) | {"args": args} | sharded))
    trainer.args.kl_estimator = estimator
    if not sharded:
        CPPOTrainer(trainer.args)
        return
    said = "kl_estimator is 'exact', but FSDP and ZeRO-3 shard the head: take k3 or k1, or use ZeRO-2$"
    with pytest.raises(InputError, match=said):
        CPPOTrainer(trainer.args)
