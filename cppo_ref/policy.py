"""The policy: a vision-language model in 4 bits with LoRA adapters, and the three things asked of it.

It encodes (image, question) into prompts, scores completions, and steps aside for the reference policy, which is itself with
the adapters switched off: no second copy of the weights is held.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from bitsandbytes.nn.modules import Linear4bit
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, GenerationConfig

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.datasets import data_folder
from cppo_ref.families import FAMILIES, Family, Scope
from cppo_ref.perturbations import to_rgb


@dataclass(frozen=True)
class LoraOptions:
    """The adapters: rank, scale (alpha / rank), where they sit, and the seed of their first values."""

    rank: int = 16
    alpha: int = 32
    scope: Scope = "all"
    seed: int = 0


@dataclass(frozen=True)
class Prompts:
    """Encoded (image, question) pairs: the model's inputs, one entry per prompt along the first dimension."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask (left-padded), pixel_values

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def take(self, index: Tensor) -> "Prompts":
        """The prompts at `index`, repeated where an index repeats."""
        return Prompts({name: tensor[index] for name, tensor in self.inputs.items()})


@dataclass
class Policy:
    """A model with adapters, its processor, and where they live."""

    model: Any  # transformers model, usually inside a PeftModel
    processor: Any
    family: Family
    device: torch.device
    dtype: torch.dtype

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def trainable(self) -> list[torch.nn.Parameter]:
        """The parameters that learn: the adapters'."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a completion."""
        ids = self.model.generation_config.eos_token_id
        return list(ids) if isinstance(ids, list) else [ids]

    @property
    def forbidden_ids(self) -> list[int]:
        """Ids never sampled: image and video placeholders (a forward pass would look for their features) and padding."""
        config = self.model.config
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        ids = {getattr(config, name, None) for name in names} | {self.tokenizer.pad_token_id}
        return sorted(i for i in ids if i is not None and i not in self.eos_ids)

    def encode(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Prompts:
        """Encode one image and one question per prompt, left-padded, on the policy's device."""
        content = [[{"type": "image"}, {"type": "text", "text": question}] for question in questions]
        texts = [
            self.processor.apply_chat_template([{"role": "user", "content": part}], add_generation_prompt=True)
            for part in content
        ]
        pixels = [to_rgb(image) for image in images]
        batch = self.processor(images=pixels, text=texts, padding=True, padding_side="left", return_tensors="pt")
        batch = batch.to(self.device)
        batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        return Prompts(dict(batch))

    def check_length(self, prompts: Prompts, new_tokens: int) -> None:
        """Raise InputError if prompt and completion do not fit the model's context."""
        longest, limit = prompts.inputs["input_ids"].shape[1], self.model.config.get_text_config().max_position_embeddings
        if longest + new_tokens > limit:
            raise InputError(
                f"prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit}: "
                "shorten the question, shrink the image or lower --max_new_tokens"
            )

    def score(
        self,
        prompts: Prompts,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        *,
        temperature: float = 1.0,
    ) -> Float[Tensor, "B T V"]:
        """Teacher-forced logits (float32, divided by the temperature) at the completion tokens only.

        Position t holds the distribution that token t was drawn from: π(·|I, q, o_<t).
        """
        inputs = dict(prompts.inputs)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], completion_ids], dim=1)
        mask = torch.cat([inputs["attention_mask"], completion_mask.to(inputs["attention_mask"].dtype)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding, on whichever side, moves no token
        kept = completion_ids.shape[1] + 1  # the token before the first one predicts it
        output = self.model(**{**inputs, "attention_mask": mask}, position_ids=positions, logits_to_keep=kept)
        return output.logits[:, :-1].float() / temperature

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: adapters off, no graph."""
        with torch.no_grad(), self.model.disable_adapter():
            yield

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the model is in eval mode without a graph; its mode is restored afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)


def load_policy(
    name_or_path: str = "tiny",
    *,
    quantize: Literal["nf4", "none"] | None = "nf4",
    device: str = "auto",
    dtype: str = "auto",
    lora: LoraOptions | None = LoraOptions(),
    adapter: str | None = None,
) -> Policy:
    """Load a VLM, put its language model in 4 bits, and add adapters: fresh ones, or those saved in `adapter`.

    Args:
        name_or_path: "tiny", a local folder, or a Hub name.
        quantize: "nf4" (double-quantised) or "none"; vision tower, projector and lm_head always keep 16 or 32 bits.
        device: "cpu", "cuda" or "auto" (the GPU if there is one).
        dtype: "float32", "bfloat16", "float16" or "auto" (CPU: float32; Ampere and later: bfloat16; older GPUs: float16).
        lora: adapters to add; None for the bare model.
        adapter: folder of a saved peft adapter to load instead of fresh ones.

    Raises:
        InputError: no such model, a family that is not supported, or no such adapter.
    """
    place = choose_device(device)
    compute = choose_dtype(dtype, place)
    path = str(data_folder() / "tiny-vlm") if name_or_path == "tiny" else name_or_path
    try:
        config = AutoConfig.from_pretrained(path)
        processor = AutoProcessor.from_pretrained(path) if config.model_type in FAMILIES else None
    except (OSError, ValueError) as error:
        raise InputError(f'model {name_or_path!r} not found: give "tiny", a model folder or a Hub name') from error
    if config.model_type not in FAMILIES:
        raise InputError(f"model type {config.model_type!r} is not supported, expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[config.model_type]
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=compute,
        device_map={"": place},
        quantization_config=_nf4(family, compute) if quantize == "nf4" else None,
    )
    _plain_generation(model, processor)
    _check_4bit(model, family)
    model.requires_grad_(False)
    return Policy(_with_adapters(model, family, lora, adapter), processor, family, place, compute)


def policy_for(config: CPPOConfig) -> Policy:
    """The policy that a run with `config` starts from."""
    lora = LoraOptions(config.lora_rank, config.lora_alpha, config.lora_scope, config.seed)
    return load_policy(config.model, quantize=config.quantize, device=config.device, dtype=config.dtype, lora=lora)


def choose_device(device: str) -> torch.device:
    """ "auto" is the GPU if there is one; InputError if "cuda" is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU: use --device cpu or install a CUDA build of torch")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto": float32 on a CPU, bfloat16 on GPUs that compute in it (capability ≥ 8), else float16 (T4)."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cpu":
        return torch.float32
    # torch.cuda.is_bf16_supported() says yes on a T4, which only emulates it
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _nf4(family: Family, compute: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=family.skipped_in_4bit(),
    )


def _plain_generation(model: Any, processor: Any) -> None:
    """Drop a checkpoint's sampling habits (top-k 50, repetition penalty…): rollouts must be samples of the policy itself."""
    shipped = model.generation_config
    eos = shipped.eos_token_id if shipped.eos_token_id is not None else processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=processor.tokenizer.pad_token_id)


def _check_4bit(model: Any, family: Family) -> None:
    """Assert that no 4-bit layer sits where it costs accuracy, and that none repacks its weights on CPU."""
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            wrong = name.startswith(tuple(family.skipped_in_4bit()))
            assert not wrong, f"{name} was quantised to 4 bits; the family table must keep it out"
            # eval-mode forwards on AVX512-BF16 CPUs would repack the weight into a form without a backward
            module.support_avx512bf16_for_cpu = False


def _with_adapters(model: Any, family: Family, lora: LoraOptions | None, adapter: str | None) -> Any:
    if adapter is not None:
        try:
            return PeftModel.from_pretrained(model, adapter, is_trainable=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"adapter {adapter!r} not found or not made for this model: give its folder") from error
    if lora is None:
        return model
    options = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=family.adapter_pattern(lora.scope))
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        return get_peft_model(model, options)
