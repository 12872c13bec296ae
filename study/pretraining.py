"""Build and pretrain the tiny VLM: a real LlavaForConditionalGeneration of about a million parameters.

It is taught three habits that make it a good subject. It looks: it lists every cell before it counts. It hallucinates: a
quarter of the cells in its pretraining text are guesses, so at temperature 1 reinforcement learning has something to fix. It
doubts: occluded and zoom-cropped pictures come with the labels of the clean picture, so that it grows uncertain when the
evidence is gone. It never sees a preserving shift (jitter, rotation, perspective): that weakness is left for CPPO.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from cppo_ref.perturbations import noise_patches, preserve, zoom_crop
from cppo_ref.runs.commands import run_command
from cppo_ref.runs.options import check_between, check_free, parse
from cppo_ref.worlds.shapes import CELL_WORDS, IMAGE_SIZE, LEVELS, Level, asked_colors, completion_text, sample_row

PATCH_SIZE = 12  # pixels
SPECIAL = ("<pad>", "<unk>", "<eos>", "<image>", "<user>", "<assistant>")
WORDS = ("how", "many", "plus", "shapes", "?", "total", ";", ":", "<think>", "</think>", "\\boxed{", "}")
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class PretrainOptions:
    """How the tiny VLM is made; the defaults made the one in data/tiny-vlm."""

    output: str = "runs/tiny-vlm"  # folder for the model; must not exist
    steps: int = 2000  # optimizer steps
    batch_size: int = 64  # fresh images per step
    learning_rate: float = 2e-3  # peak of the one-cycle schedule
    guess_rate: float = 0.25  # share of listed cells replaced by a uniform guess
    hard_share: float = 0.4  # share of 4×4 pictures
    preserving_share: float = 0.0  # share of pictures under a preserving view
    seed: int = 0


def build_processor(extra_words: Sequence[str] = ()) -> LlavaProcessor:
    """The word-level tokenizer, image processor and chat template of the tiny VLM; `extra_words` go last."""
    vocabulary = [*SPECIAL, *WORDS, *CELL_WORDS, *(str(n) for n in range(17)), *extra_words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\?"), "isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return LlavaProcessor(
        images,
        fast,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights drawn from `seed`."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def corrupt(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half of the pictures stay clean, 30 % are occluded by 10–120 noise patches, 20 % zoom-cropped."""
    kind = rng.random()
    if kind < 0.5:
        return image
    if kind < 0.8:
        return noise_patches(image, rng, rng.uniform(0.2, 2.4))
    return zoom_crop(image, rng)


def training_example(rng: np.random.Generator, level: Level, options: PretrainOptions) -> dict:
    """{image, question, answer, completion}: a share `guess_rate` of the listed cells are guesses, counted without error."""
    row = sample_row(rng, level)
    cells = [thing["color"] for thing in row["objects"]]
    cells = [str(rng.choice(CELL_WORDS)) if rng.random() < options.guess_rate else cell for cell in cells]
    image = corrupt(row["image"], rng)
    if options.preserving_share and rng.random() < options.preserving_share:
        image = preserve(row["image"], rng)
    return row | {"image": image, "completion": completion_text(cells, asked_colors(row["question"]))}


Example = Callable[[np.random.Generator, Level, PretrainOptions], dict]


def pretraining_batch(
    processor: LlavaProcessor, options: PretrainOptions, step: int, example: Example = training_example
) -> dict[str, torch.Tensor]:
    """The inputs and labels of step `step`: a pure function of (seed, step)."""
    rng = np.random.default_rng([options.seed, step])
    level = LEVELS["hard" if rng.random() < options.hard_share else "easy"]
    rows = [example(rng, level, options) for _ in range(options.batch_size)]
    images = [row["image"] for row in rows]
    texts = [f"<user> <image> {row['question']} <assistant> {row['completion']} <eos>" for row in rows]
    batch = processor(images=images, text=texts, return_tensors="pt", padding=True)  # pyright: ignore[reportCallIssue]
    start = processor.tokenizer.convert_tokens_to_ids("<assistant>")
    answered = (batch["input_ids"] == start).cumsum(1).bool() & (batch["input_ids"] != start)
    labels = batch["input_ids"].masked_fill(~answered | (batch["attention_mask"] == 0), -100)
    return {**batch, "labels": labels}


def pretrain(options: PretrainOptions, *, example: Example = training_example, words: Sequence[str] = ()) -> Path:
    """Train the tiny VLM on fresh pictures and save it, with its processor, in `options.output`.

    `example` draws what it is trained on, in the vocabulary and `words`.
    """
    folder = Path(options.output)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: choose another --output, nothing was overwritten")
    processor = build_processor(words)
    model = build_model(processor, options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=options.steps)
    model.train()
    start = time.perf_counter()
    loss = torch.tensor(float("nan"))
    bar = tqdm(range(options.steps), desc="pretrain")
    for step in bar:
        loss = model(**pretraining_batch(processor, options, step, example)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {k: v for k, v in asdict(options).items() if k != "output"}
    record |= {"parameters": sum(p.numel() for p in model.parameters()), "final_loss": loss.item()}
    record |= {"seconds": round(time.perf_counter() - start), "threads": torch.get_num_threads(), "torch": torch.__version__}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {folder}: {record}")
    return folder


def pretrain_command(arguments: Sequence[str]) -> None:
    """`python -m study.pretraining`: make the tiny VLM again from nothing; InputError for what cannot be done."""
    (options,) = parse((PretrainOptions,), "python -m study.pretraining", arguments)
    check_free(options.output)
    check_between(options, steps=(1, 10**7), batch_size=(1, 4096), seed=(0, 2**63 - 1))
    pretrain(options)


if __name__ == "__main__":
    sys.exit(run_command("study.pretraining", lambda: pretrain_command(sys.argv[1:])))
