"""Tiny models with random weights, one folder per family, as `load_policy` finds them on the Hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Idefics3Processor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cppo_ref.worlds.splits import data_folder

# special tokens beside the course's, by the names that processors ask the tokenizer for
QWEN_TOKENS = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
QWEN_TOKENS |= {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
INTERN_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>"}
INTERN_TOKENS |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
SMOL_TOKENS = {"fake": "<fake_token_around_image>", "end": "<end_of_utterance>", "global": "<global-img>"}
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 2048}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}  # the course's tokenizer
VISION = {
    "qwen2_vl": {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 4}
    | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    "qwen2_5_vl": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [1], "window_size": 56},
    "qwen3_vl": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    | {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64}
    | {"deepstack_visual_indexes": [0]},
    "internvl": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": [56, 56], "patch_size": [14, 14], "layer_scale_init_value": 1.0},
    "idefics3": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": 64, "patch_size": 16},
}
MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard("qwen3_5")  # else it gets a byte-level tokenizer, whatever its folder says
VISION["qwen3_5"] = {k: v for k, v in VISION["qwen3_vl"].items() if k != "deepstack_visual_indexes"}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16, "linear_value_head_dim": 16}
LINEAR |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
VISION["smolvlm"] = VISION["idefics3"]
TYPES = ["llava", "internvl", "internvl-qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "idefics3", "smolvlm"]


def make_family(kind: str, folder: Path) -> Path:
    """Write a tiny random model with tokenizer and image processor to `folder`; llava is the course's own.

    `kind` is a model type, with the type of its language model behind it where that may vary.
    """
    if kind == "llava":
        return data_folder() / "tiny-vlm"
    torch.manual_seed(1)
    model_type, _, language = kind.partition("-")
    text = TEXT | ({"model_type": language} if language else {}) | (LINEAR if model_type == "qwen3_5" else {})
    return random_model({"model_type": model_type, "text_config": text, "vision_config": VISION[model_type]}, folder)


def random_model(fields: dict[str, Any], folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with random weights to `folder`: `fields` are a config's, the tokenizer is the course's with more words.

    A vocabulary larger than the tokenizer's is kept: its other tokens decode to nothing, and cost what they cost.
    """
    model_type, vision = fields["model_type"], fields["vision_config"]
    family = next(name for name in ("qwen", "internvl", "") if model_type.startswith(name))  # "": SmolVLM
    tokens = {"qwen": QWEN_TOKENS, "internvl": INTERN_TOKENS, "": SMOL_TOKENS}[family]
    image = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>", "": "<image>"}[family]
    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "tiny-vlm", extra_special_tokens=tokens)
    tokenizer.init_kwargs.pop("processor_class", None)
    tokenizer._set_processor_class(None)  # the course's is LlavaProcessor
    tokenizer.chat_template = tokenizer.chat_template.replace(" <image>", " " + image)
    token = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer)} | fields["text_config"] | SPECIAL
    if family == "qwen":
        sections = [text["head_dim"] // 8, *[3 * text["head_dim"] // 16] * 2] if "head_dim" in text else []
        text = {"rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}} | text
        special = {"image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>")}
        special |= {"vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>")}
        area = vision["patch_size"] ** 2
        images = Qwen2VLImageProcessorPil(
            patch_size=vision["patch_size"], merge_size=2, size={"shortest_edge": 4 * area, "longest_edge": 4096 * area}
        )
    elif family == "internvl":
        special = {"image_token_id": token("<IMG_CONTEXT>")}
        text = {"model_type": "qwen2"} | text
        height, width = vision["image_size"]
        images = GotOcr2ImageProcessorPil(size={"height": height, "width": width}, crop_to_patches=True)
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
