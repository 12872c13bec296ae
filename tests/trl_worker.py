"""CPPOTrainer with completions and rewards that are given: in this process, or as one of several (see `main`)."""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from cppo_ref.examples.loading import split_rows
from cppo_ref.trl import CPPOTrainer, CPPOTrainerConfig
from cppo_ref.vlm.policy import load_policy

LORA = {"rank": 4, "alpha": 8}


class Gradients(TrainerCallback):
    """The gradients before each optimizer step, by parameter."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        named = model.named_parameters()
        self.steps.append({n.removeprefix("module."): p.grad.clone() for n, p in named if p.requires_grad and p.grad is not None})


class Given(CPPOTrainer):
    """Samples nothing: row r of a global batch gets completion r of `completions`, and the reward that belongs to it."""

    completions: list = []

    def _generate_single_turn(self, prompt_ids, images, fields, num_generations, has_tool_images=False):
        first = self.accelerator.process_index * len(prompt_ids)
        return [self.completions[first + i] for i in range(len(prompt_ids))], None

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        self.seen_inputs = inputs
        return loss


def conversations(rows):
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": r["question"]}], "image": r["image"], "answer": r["answer"]} for r in rows]
    )


def make_trainer(rows, completions, rewards, output, *, model="tiny", quantize="nf4", state=None, kind=Given, **options):
    """A trainer whose steps are on `rows`; `state` are values of adapters, by name; `rewards` takes TRL's arguments."""
    usual = {"seed": 0, "per_device_train_batch_size": len(completions), "num_generations": len(completions) // len(rows)}
    usual |= {"learning_rate": 0.0, "max_grad_norm": 0.0, "max_steps": 1, "max_completion_length": 20, "shuffle_dataset": False}
    usual |= {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    usual |= {"gradient_checkpointing": False, "dataloader_pin_memory": False, "cpl_weight": 0.5, "lr_scheduler_type": "constant"}
    policy = load_policy(model, quantize=quantize, lora=None)
    for name, value in policy.family.processor_options.items():
        setattr(policy.processor.image_processor, name, value)
    policy.tokenizer.padding_side = "left"
    trainer = kind(
        policy.model,
        rewards,
        CPPOTrainerConfig(output_dir=str(output), **usual | options),
        conversations(rows),
        processing_class=policy.processor,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=policy.family.adapter_pattern("all")),
    )
    for name, parameter in trainer.model.named_parameters():
        if state and name in state:
            parameter.data.copy_(state[name])
    trainer.completions, trainer.losses, trainer.gradients = completions, [], Gradients()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainer.gradients)
    return trainer
