"""TRL's GRPOTrainer on the tiny VLM, with the same settings as a run of ours, measured step by step."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measuring import Meter
from cppo_ref.config import CPPOConfig
from cppo_ref.rewards import reward
from cppo_ref.vlm.families import FAMILIES
from cppo_ref.vlm.quantization import model_path


class Measured(TrainerCallback):
    """Measures every step of TRL's loop, rows already fetched, and then lets others take their turn."""

    def __init__(self, meter: Meter, after: Callable[[int], None]) -> None:
        self.meter, self.after, self.values = meter, after, []

    def on_step_begin(self, *unused: Any, **also: Any) -> None:
        """The rows are there; rollouts come next."""
        self.meter.start()

    def on_step_end(self, args: Any, state: Any, *unused: Any, **also: Any) -> None:
        """The optimizer has stepped."""
        self.values.append(self.meter.stop())
        self.after(state.global_step - 1)


class TrlArm:
    """A GRPOTrainer that learns as `config` says from the rows of its steps; `lengths` are those of its completions."""

    def __init__(self, config: CPPOConfig, rows: list[list[dict[str, Any]]], forbidden_ids: list[int]) -> None:
        self.lengths: list[int] = []
        path = model_path(config.model)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        pattern = FAMILIES[model.config.model_type].adapter_pattern(config.lora_scope)
        self.trainer = GRPOTrainer(
            model,
            reward_funcs=self._rewards,
            args=settings(config, len(rows), forbidden_ids),
            train_dataset=Dataset.from_list([conversation(row) for step in rows for row in step]),
            processing_class=AutoProcessor.from_pretrained(path),
            peft_config=LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=pattern),
        )

    def run(self, meter: Meter, after: Callable[[int], None] = lambda step: None) -> list[float]:
        """What `meter` says of each step; after each, `after` is called with its number, from 0."""
        measured = Measured(meter, after)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(measured)
        self.trainer.train()
        return measured.values

    def _rewards(self, completions: list, completion_ids: list, answer: list[str], **also: Any) -> list[float]:
        self.lengths += [len(ids) for ids in completion_ids]
        return [reward(c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]


def settings(
    config: CPPOConfig, steps: int, forbidden_ids: list[int], kind: type[GRPOConfig] = GRPOConfig, **others: Any
) -> GRPOConfig:
    """TRL's settings for what `config` says, on a CPU in float32, with nothing logged, saved or evaluated."""
    return kind(
        output_dir=tempfile.mkdtemp(prefix="trl-"),  # nothing is written there
        max_steps=steps,
        per_device_train_batch_size=config.prompts_per_step * config.group_size,
        num_generations=config.group_size,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        generation_kwargs={"suppress_tokens": forbidden_ids},
        beta=config.kl_weight,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **others,
    )


def conversation(row: dict[str, Any]) -> dict[str, Any]:
    """A row as TRL takes it."""
    return {"prompt": [{"role": "user", "content": row["question"]}], "image": row["image"], "answer": row["answer"]}
