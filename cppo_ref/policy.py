"""The policy: a vision-language model in 4 bits with LoRA adapters, and the three things asked of it.

It encodes (image, question) into prompts, scores completions, and steps aside for the reference policy, which is itself with
the adapters switched off: no second copy of the weights is held.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.devices import choose_device, choose_dtype
from cppo_ref.families import FAMILIES, Family, Scope
from cppo_ref.processors import load_processor
from cppo_ref.prompts import Prompts, encode_prompts
from cppo_ref.quantization import check_4bit, model_path, nf4_config, read_config


@dataclass(frozen=True)
class LoraOptions:
    """The adapters: rank, scale (alpha / rank), where they sit, and the seed of their first values."""

    rank: int = 16
    alpha: int = 32
    scope: Scope = "all"
    seed: int = 0


@dataclass
class Policy:
    """A model with adapters, its processor, and where they live."""

    model: Any  # transformers model, usually inside a PeftModel
    processor: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    max_pixels: int | None = None  # larger images are scaled down to it
    activation_checkpointing: bool = False

    @property
    def vlm(self) -> Any:
        """The transformers model, adapters in its layers: `.model` up to the last hidden states, and `.lm_head`."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> int:
        """V, the number of logits per token."""
        return self.vlm.lm_head.out_features

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

    def encode(self, images: Sequence[Image.Image | Sequence[Image.Image]], questions: Sequence[str]) -> Prompts:
        """Encode one question and one image (or several) per prompt, left-padded, on the policy's device."""
        prompts = encode_prompts(self.processor, self.family, images, questions, self.max_pixels)
        inputs = {name: tensor.to(self.device) for name, tensor in prompts.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return replace(prompts, inputs=inputs)

    def check_length(self, prompts: Prompts, new_tokens: int) -> None:
        """Raise InputError if prompt and completion do not fit the model's context."""
        longest, limit = prompts.inputs["input_ids"].shape[1], self.model.config.get_text_config().max_position_embeddings
        if longest + new_tokens > limit:
            raise InputError(
                f"prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit}: "
                "shorten the question, shrink the image or lower --max_new_tokens"
            )

    def hidden_states(
        self, prompts: Prompts, completion_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """The last hidden states that predict the completion tokens, before the head; only these need [T, V] logits."""
        longest = max(int(completion_mask.any(dim=0).sum()), 1)  # nobody's completion goes on after it
        ids, completed = completion_ids[:, :longest], completion_mask[:, :longest]
        inputs = dict(prompts.inputs)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], completed.to(inputs["attention_mask"].dtype)], dim=1)
        if "mm_token_type_ids" in inputs:  # completions are text, type 0; without it Qwen silently numbers images like text
            inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, longest))
        if self.family.positions_from == "mask":  # padding moves no token
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.vlm.model(**inputs, use_cache=False).last_hidden_state[:, -longest - 1 : -1]
        return F.pad(hidden, (0, 0, 0, completion_ids.shape[1] - longest))

    def logits(self, hidden: Float[Tensor, "*N H"], *, temperature: float = 1.0) -> Float[Tensor, "*N V"]:
        """The head on hidden states: logits in float32, divided by the temperature."""
        return self.vlm.lm_head(hidden).float() / temperature

    def score(
        self,
        prompts: Prompts,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        *,
        temperature: float = 1.0,
    ) -> Float[Tensor, "B T V"]:
        """Teacher-forced logits (float32, divided by the temperature) at the completion tokens only.

        Position t holds the distribution that token t was drawn from: π(·|I, q, o_<t). For a large vocabulary this is the
        largest tensor of all: training works on `hidden_states` and takes the logits of a few tokens at a time.
        """
        return self.logits(self.hidden_states(prompts, completion_ids, completion_mask), temperature=temperature)

    def sample(self, prompts: Prompts, max_new_tokens: int, temperature: float) -> Int[Tensor, "B T"]:
        """One completion per prompt from the global generator, padded after its end-of-sequence token."""
        sampling = {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        options = {**sampling, "max_new_tokens": max_new_tokens, "suppress_tokens": self.forbidden_ids}
        return self.model.generate(**prompts.inputs, **options)[:, prompts.inputs["input_ids"].shape[1] :]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: adapters off, no graph."""
        with torch.no_grad(), self.model.disable_adapter():
            yield

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Inside, activations are checkpointed if that was switched on: transformers does so in train mode only."""
        was_training = self.model.training
        self.model.train(self.activation_checkpointing)
        try:
            yield
        finally:
            self.model.train(was_training)

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
    max_pixels: int | None = None,
    activation_checkpointing: bool = False,
) -> Policy:
    """Load a VLM, put its language model in 4 bits, and add adapters: fresh ones, or those saved in `adapter`.

    Args:
        name_or_path: "tiny", a local folder, or a Hub name.
        quantize: "nf4" (double-quantised) or "none"; vision tower, projector and lm_head always keep 16 or 32 bits.
        device: "cpu", "cuda" or "auto" (the GPU if there is one).
        dtype: "float32", "bfloat16", "float16" or "auto" (CPU: float32; Ampere and later: bfloat16; older GPUs: float16).
        lora: adapters to add; None for the bare model.
        adapter: folder of a saved peft adapter to load instead of fresh ones.
        max_pixels: images with more pixels are scaled down to it.
        activation_checkpointing: keep one activation per layer and recompute the others in the backward pass.

    Raises:
        InputError: no such model, a family that is not supported, or no such adapter.
    """
    place = choose_device(device)
    compute = choose_dtype(dtype, place)
    path = model_path(name_or_path)
    config = read_config(name_or_path)
    try:
        processor = load_processor(path, config)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name_or_path!r} has no tokenizer or image processor: give a whole model") from error
    family = FAMILIES[config.model_type]
    nf4 = nf4_config(family, compute) if quantize == "nf4" else None
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=compute, device_map={"": place}, quantization_config=nf4)
    _plain_generation(model, processor)
    check_4bit(model, family)
    model.requires_grad_(False)
    adapted = _with_adapters(model, family, lora, adapter)
    if activation_checkpointing:
        model.gradient_checkpointing_enable()  # transformers before 5.23 has no newer name
        model.disable_input_require_grads()  # else frozen layers below the first adapter join the graph
    adapted.eval()  # a fresh PeftModel is in train mode
    return Policy(adapted, processor, family, place, compute, max_pixels, activation_checkpointing)


def policy_for(config: CPPOConfig) -> Policy:
    """The policy that a run with `config` starts from."""
    lora = LoraOptions(config.lora_rank, config.lora_alpha, config.lora_scope, config.seed)
    return load_policy(
        config.model,
        quantize=config.quantize,
        device=config.device,
        dtype=config.dtype,
        lora=lora,
        max_pixels=config.max_pixels or None,
        activation_checkpointing=config.activation_checkpointing,
    )


def _plain_generation(model: Any, processor: Any) -> None:
    """Drop a checkpoint's sampling habits (top-k 50, repetition penalty…): rollouts must be samples of the policy itself."""
    shipped = model.generation_config
    eos = shipped.eos_token_id if shipped.eos_token_id is not None else processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=processor.tokenizer.pad_token_id)


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
