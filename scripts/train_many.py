"""CPPO on TRL's engine, on one process or many: `torchrun --nproc_per_node 2 scripts/train_many.py --output_dir runs/two`.

Takes all settings of TRL's GRPOConfig and of CPPO, on the command line or in a file (--config run.yaml), and those of `Source`.
"""

from dataclasses import dataclass

from datasets import Dataset
from peft import LoraConfig
from trl import TrlParser

from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.rewards import reward
from cppo_ref.trl import CPPOTrainer, CPPOTrainerConfig
from cppo_ref.vlm.policy import load_policy
from cppo_ref.vlm.prompts import fit_pixels, to_rgb


@dataclass
class Source:
    """What is trained, on what: as the settings of `python -m cppo_ref train` that have these names."""

    model: str = "tiny"
    data: str = "shapes"
    quantize: str = "nf4"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_scope: str = "all"
    max_pixels: int = 0


def make_trainer(args: CPPOTrainerConfig, source: Source) -> CPPOTrainer:
    """The model in 4 bits, fresh adapters, the rows as conversations, and TRL around them."""
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    device = "cpu" if args.use_cpu else "auto"
    policy = load_policy(source.model, quantize=source.quantize, lora=None, device=device, dtype=dtype)
    policy.tokenizer.padding_side = "left"
    for name, value in policy.family.processor_options.items():
        setattr(policy.processor.image_processor, name, value)
    rows = load_rows(source.data)

    def conversations(numbers: dict[str, list[int]]) -> dict[str, list]:
        chosen = [row_at(rows, number) for number in numbers["row"]]
        images = [[fit_pixels(to_rgb(image), source.max_pixels or None) for image in row["images"]] for row in chosen]
        prompts = [[{"role": "user", "content": row["question"]}] for row in chosen]
        return {"prompt": prompts, "images": images, "answer": [row["answer"] for row in chosen]}

    return CPPOTrainer(
        policy.model,
        correct_and_formatted,
        args,
        Dataset.from_dict({"row": range(len(rows))}).with_transform(conversations),
        processing_class=policy.processor,
        peft_config=LoraConfig(
            r=source.lora_rank, lora_alpha=source.lora_alpha, target_modules=policy.family.adapter_pattern(source.lora_scope)
        ),
    )


def correct_and_formatted(completions: list, answer: list[str], **others: object) -> list[float]:
    """The paper's reward of each completion."""
    return [reward(said[0]["content"], right) for said, right in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    parser = TrlParser((CPPOTrainerConfig, Source))
    parser.set_defaults(learning_rate=6e-4, lr_scheduler_type="constant", max_completion_length=20, num_generations=8)
    args, source = parser.parse_args_and_config()
    trainer = make_trainer(args, source)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(f"{args.output_dir}/adapter")
