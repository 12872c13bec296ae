"""Tiny models with random weights, one folder per family, as `load_policy` finds them on the Hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Idefics3Processor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cppo_ref.worlds.splits import data_folder

QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SMOL_TOKENS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
QWEN_IMAGE, SMOL_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>", "<image>"
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}  # the course's tokenizer
VISION = {
    "qwen2_5_vl": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [1], "window_size": 56},
    "qwen3_vl": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    | {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64}
    | {"deepstack_visual_indexes": [0]},
    "idefics3": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": 64, "patch_size": 16},
}
VISION["smolvlm"] = VISION["idefics3"]
TYPES = ["llava", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm"]


def make_family(model_type: str, folder: Path) -> Path:
    """Write a tiny random model of `model_type` with tokenizer and image processor to `folder`; llava is the course's own."""
    if model_type == "llava":
        return data_folder() / "tiny-vlm"
    torch.manual_seed(0)
    return random_model({"model_type": model_type, "text_config": TEXT, "vision_config": VISION[model_type]}, folder)


def random_model(fields: dict[str, Any], folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with random weights to `folder`: `fields` are a config's, the tokenizer is the course's with more words.

    A vocabulary larger than the tokenizer's is kept: its other tokens decode to nothing, and cost what they cost.
    """
    model_type, vision = fields["model_type"], fields["vision_config"]
    qwen = model_type.startswith("qwen")
    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "tiny-vlm")
    tokenizer.init_kwargs.pop("processor_class", None)
    tokenizer._set_processor_class(None)  # the course's is LlavaProcessor
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS if qwen else SMOL_TOKENS})
    tokenizer.chat_template = tokenizer.chat_template.replace(" <image>", " " + (QWEN_IMAGE if qwen else SMOL_IMAGE))
    token = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer)} | fields["text_config"] | SPECIAL
    if qwen:
        sections = [text["head_dim"] // 8, *[3 * text["head_dim"] // 16] * 2] if "head_dim" in text else []
        text = {"rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}} | text
        special = {"image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>")}
        special |= {"vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>")}
        area = vision["patch_size"] ** 2
        images = Qwen2VLImageProcessorPil(
            patch_size=vision["patch_size"], merge_size=2, size={"shortest_edge": 4 * area, "longest_edge": 4096 * area}
        )
    else:
        special = {"image_token_id": token("<image>"), "scale_factor": fields.get("scale_factor", 2)}
        text |= {"model_type": "llama"}
        side = {"longest_edge": vision["image_size"]}
        kind = SmolVLMImageProcessorPil if model_type == "smolvlm" else Idefics3ImageProcessorPil
        images = kind(size=side, max_image_size=side)
    config = CONFIG_MAPPING[model_type](text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    if model_type == "idefics3":  # no video part: the stock processor is found by its own config
        tokens = (vision["image_size"] // vision["patch_size"] // special["scale_factor"]) ** 2
        template = tokenizer.chat_template
        Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template).save_pretrained(folder)
    return folder
