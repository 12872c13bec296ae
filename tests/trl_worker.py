"""CPPOTrainer with completions and rewards that are given; under torchrun, one of several processes that share two steps."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from cppo_ref.examples.loading import split_rows
from cppo_ref.trl import CPPOTrainer, CPPOTrainerConfig
from cppo_ref.vlm.policy import load_policy

LORA = {"rank": 4, "alpha": 8}
QUIET = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
ON_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
STILL = {"learning_rate": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "seed": 0, "shuffle_dataset": False}


class Gradients(TrainerCallback):
    """The gradients before each optimizer step, by parameter."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
        self.steps.append({name: gradient.clone() for name, gradient in found.items() if gradient is not None})


class Given(CPPOTrainer):
    """Samples nothing: row r of the n-th global batch gets completion r of `batches[n]`; a loss is noted, with its inputs."""

    def given(self, batches):
        self.batches, self.losses, self.gradients = iter(batches), [], Gradients()
        self.add_callback(self.gradients)
        return self

    def _generate_single_turn(self, prompt_ids, *images, **others):
        first, batch = self.accelerator.process_index * len(prompt_ids), next(self.batches)
        return batch[first : first + len(prompt_ids)], None

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        self.last = inputs
        return loss


def make_trainer(rows, rewards, output, *, kind=Given, model="tiny", quantize="none", state=None, **options):
    """A trainer on `rows` for a CPU; `rewards` takes TRL's arguments, `state` holds values of adapters by name."""
    policy = load_policy(model, quantize=quantize, lora=None)
    policy.tokenizer.padding_side = "left"
    for name, value in policy.family.processor_options.items():
        setattr(policy.processor.image_processor, name, value)
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}], "image": row["image"]} for row in rows]
    trainer = kind(
        policy.model,
        rewards,
        CPPOTrainerConfig(output_dir=str(output), **{**QUIET, **ON_CPU, **STILL, "max_completion_length": 20, **options}),
        Dataset.from_list(prompts),
        processing_class=policy.processor,
        peft_config=LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=policy.family.adapter_pattern("all")),
    )
    trainer.remove_callback(PrinterCallback)
    for name, parameter in trainer.model.named_parameters():
        if name in (state or {}):
            parameter.data.copy_(state[name])
    return trainer


def uneven_steps(tokenizer):
    """Two batches of two prompts with four completions each, and their rewards: first only prompt 0 is gated, then only 1."""
    words = tokenizer("<think> red blue none red green yellow none ; red : 2 </think>")["input_ids"]
    batches = [[words[: 3 + row] + words[step : step + 1] for row in range(8)] for step in range(2)]
    gated = {0: range(4), 1: range(4, 8)}
    return batches, {
        tuple(ids): float(row % 2 if row in gated[step] else 0.5) for step in (0, 1) for row, ids in enumerate(batches[step])
    }


def two_steps(output, processes):
    """The gradients of two steps on `uneven_steps`, shared by so many processes; every parameter has left zero."""
    tokenizer = load_policy("tiny", quantize="none", lora=None).tokenizer
    batches, value = uneven_steps(tokenizer)

    def rewards(completion_ids, **others):
        return [value[tuple(ids)] for ids in completion_ids]

    options = {"per_device_train_batch_size": 8 // processes, "num_generations": 4, "max_steps": 2, "cpl_weight": 0.5}
    trainer = make_trainer(split_rows("test", count=4), rewards, output, **options).given(batches)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    trainer.train()
    return trainer


if __name__ == "__main__":
    folder = sys.argv[1]
    trained = two_steps(folder, processes=2)
    if trained.accelerator.is_main_process:
        torch.save(trained.gradients.steps, f"{folder}/gradients.pt")
