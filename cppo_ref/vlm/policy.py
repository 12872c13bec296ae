"""The policy: a vision-language model in 4 bits with LoRA adapters, and the three things asked of it.

It encodes (image, question) into prompts, scores completions, and steps aside for the reference policy, which is itself with
the adapters switched off: no second copy of the weights is held.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.vlm.adapters import DEFAULT_LORA, LoraOptions, merged_adapters, quicken_adapters, unpack_4bit, with_adapters
from cppo_ref.vlm.decoding import Decoder
from cppo_ref.vlm.devices import choose_device, choose_dtype
from cppo_ref.vlm.families import FAMILIES, Family, shares_prompts
from cppo_ref.vlm.packing import Ids, Mask, pack
from cppo_ref.vlm.processors import load_processor
from cppo_ref.vlm.prompts import Pictures, Prompts, encode_prompts
from cppo_ref.vlm.quantization import check_4bit, model_path, nf4_config, read_config, reading

_OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")  # inputs that packing replaces


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
    unpacked: bool = False  # 4-bit weights are held unpacked, and adapters merged where there is no graph

    @property
    def vlm(self) -> Any:
        """The transformers model, adapters in its layers: `.model` up to the last hidden states, and `.lm_head`."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def language(self) -> Any:
        """The language model, up to its last hidden states."""
        return self.vlm.get_submodule(self.family.language)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> int:
        """V, the number of logits per token."""
        return self.vlm.lm_head.out_features

    @property
    def computing(self) -> str:
        """In which format and where, such as "float16 on Tesla T4": with another one, a resumed run has other bytes."""
        on_gpu = self.device.type == "cuda"
        return f"{self.dtype} on {torch.cuda.get_device_name(self.device) if on_gpu else 'cpu'}".removeprefix("torch.")

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
        """Ids never sampled, see `forbidden_ids`."""
        return forbidden_ids(self.model.config, self.tokenizer, self.eos_ids)

    def encode(self, images: Pictures, questions: Sequence[str]) -> Prompts:
        """Encode one question and one image (or several) per prompt, left-padded, on the policy's device."""
        prompts = encode_prompts(self.processor, self.family, images, questions, self.max_pixels)
        inputs = {name: tensor.to(self.device) for name, tensor in prompts.encoded.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return replace(prompts, encoded=inputs)

    def check_length(self, prompts: Prompts, new_tokens: int) -> None:
        """Raise InputError if prompt and completion do not fit the model's context."""
        longest, limit = prompts.encoded["input_ids"].shape[1], self.model.config.get_text_config().max_position_embeddings
        if longest + new_tokens > limit:
            raise InputError(
                f"prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit}: "
                "shorten the question, shrink the image or lower --max_new_tokens"
            )

    def positions(self, inputs: dict[str, Tensor]) -> Int[Tensor, "*axes P W"]:
        """The positions of the prompts' tokens; padding moves no token. Image grids: by the model, on three axes (M-RoPE)."""
        if "image_grid_thw" in inputs:
            images = {"image_grid_thw": inputs["image_grid_thw"], "attention_mask": inputs["attention_mask"]}
            return self.vlm.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **images)[0]
        return (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)

    def hidden_states(self, prompts: Prompts, completion_ids: Ids, completion_mask: Mask) -> Float[Tensor, "B T H"]:
        """The last hidden states that predict the completion tokens, before the head; only these need [T, V] logits.

        Completions of the same prompt share its computation, image included (`packing`), unless the model's layers forbid it.
        """
        shared = shares_prompts(self.vlm.config)
        inputs, prompt = prompts.distinct() if shared else (prompts.inputs, torch.arange(len(prompts), device=self.device))
        packs = pack(inputs["input_ids"], inputs["attention_mask"].bool(), prompt, completion_ids, completion_mask)
        pixels = {name: tensor for name, tensor in inputs.items() if name not in _OF_TOKENS}
        output = self.vlm.model(
            input_ids=packs.ids,
            attention_mask=packs.attention_mask(self.dtype) if shared else (packs.owner >= 0).long(),
            position_ids=packs.positions(self.positions(inputs)),
            use_cache=False,
            **pixels,
        )
        return packs.unpack(output.last_hidden_state)

    def decode(self, prompts: Prompts) -> Decoder:
        """Begin one completion per prompt; equal prompts are computed once."""
        inputs, prompt = prompts.distinct()
        return Decoder(self.vlm, self.language, inputs, self.positions(inputs), prompt)

    def logits(self, hidden: Float[Tensor, "*N H"], *, temperature: float = 1.0) -> Float[Tensor, "*N V"]:
        """The head on hidden states, in its own precision: its logits as float32, divided by the temperature."""
        return self.vlm.lm_head(hidden).float() / temperature

    def score(
        self, prompts: Prompts, completion_ids: Ids, completion_mask: Mask, *, temperature: float = 1.0
    ) -> Float[Tensor, "B T V"]:
        """Teacher-forced logits (float32, divided by the temperature) at the completion tokens only.

        Position t holds the distribution that token t was drawn from: π(·|I, q, o_<t). For a large vocabulary this is the
        largest tensor of all: training works on `hidden_states` and takes the logits of a few tokens at a time.
        """
        return self.logits(self.hidden_states(prompts, completion_ids, completion_mask), temperature=temperature)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: adapters off, no graph."""
        with torch.no_grad(), self.model.disable_adapter():
            yield

    @contextmanager
    def _mode(self, train: bool) -> Iterator[None]:
        """Inside, the model is in train mode or in eval mode."""
        was_training = self.model.training
        self.model.train(train)
        try:
            yield
        finally:
            self.model.train(was_training)

    def learning(self) -> AbstractContextManager[None]:
        """Inside, activations are checkpointed if that was switched on: transformers does so in train mode only."""
        return self._mode(train=self.activation_checkpointing)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Inside, the model is in eval mode without a graph; unpacked float32 weights have the adapters merged into them."""
        merging = self.unpacked and self.dtype == torch.float32
        with self._mode(train=False), torch.no_grad(), merged_adapters(self.model) if merging else nullcontext():
            yield


def forbidden_ids(config: Any, tokenizer: Any, eos_ids: Sequence[int]) -> list[int]:
    """Ids never sampled: image and video placeholders (a forward pass would look for their features) and padding."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = {getattr(config, name, None) for name in names} | {tokenizer.pad_token_id}
    return sorted(i for i in ids if i is not None and i not in eos_ids)


def load_policy(
    name_or_path: str = "tiny",
    *,
    quantize: Literal["nf4", "none"] | None = "nf4",
    device: str = "auto",
    dtype: str = "auto",
    lora: LoraOptions | None = DEFAULT_LORA,
    adapter: str | None = None,
    max_pixels: int | None = None,
    activation_checkpointing: bool = False,
    unpack: bool = False,
) -> Policy:
    """Load a VLM, put its language model in 4 bits, and add adapters: fresh ones, or those saved in `adapter`.

    The options are those of `CPPOConfig`, which says what each does. None for `lora` leaves the model without adapters. Vision
    tower, projector and lm_head always keep 16 or 32 bits.

    Raises:
        InputError: an option has no such value, no such model, a family that is not supported, or no such adapter.
    """
    if quantize not in ("nf4", "none", None):
        raise InputError(f"quantize is {quantize!r}, expected nf4 or none")
    place = choose_device(device)
    compute = choose_dtype(dtype, place)
    path, config = model_path(name_or_path), read_config(name_or_path)
    family = FAMILIES[config.model_type]
    options: Any = {"dtype": compute, "device_map": {"": place}, "trust_remote_code": False, "use_safetensors": True}
    options["quantization_config"] = nf4_config(family, compute) if quantize == "nf4" else None
    with reading(name_or_path):
        processor = load_processor(path, config)
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True)
        model, found = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True, **options)  # type: ignore[misc]
        if found["missing_keys"]:  # transformers would draw them at random
            raise InputError(f"model {name_or_path!r} lacks {min(found['missing_keys'])}: give a whole model")
    _plain_generation(model, processor)
    check_4bit(model, family)
    if unpack:
        unpack_4bit(model, compute)
    adapted = with_adapters(model.requires_grad_(False), family, lora, adapter)
    if activation_checkpointing:
        model.gradient_checkpointing_enable()  # transformers before 5.23 has no newer name
        model.disable_input_require_grads()  # else frozen layers below the first adapter join the graph
    adapted.eval()  # a fresh PeftModel is in train mode
    if unpack:
        quicken_adapters(adapted)
    return Policy(adapted, processor, family, place, compute, max_pixels, activation_checkpointing, unpack)


def policy_for(config: CPPOConfig, adapter: str = "") -> Policy:
    """The policy that a run with `config` starts from; with `adapter`, one that it led to."""
    lora = LoraOptions(config.lora_rank, config.lora_alpha, config.lora_scope, config.seed)
    shared = {name: getattr(config, name) for name in ("quantize", "device", "dtype", "activation_checkpointing", "unpack")}
    return load_policy(config.model, lora=lora, adapter=adapter or None, max_pixels=config.max_pixels or None, **shared)


def _plain_generation(model: Any, processor: Any) -> None:
    """Drop a checkpoint's sampling habits (top-k 50, repetition penalty…): rollouts must be samples of the policy itself."""
    shipped = model.generation_config
    eos = shipped.eos_token_id if shipped.eos_token_id is not None else processor.tokenizer.eos_token_id
    if eos is None:
        raise InputError(f"model {model.name_or_path!r} names no token that ends a completion: give its tokenizer an eos_token")
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=processor.tokenizer.pad_token_id)
