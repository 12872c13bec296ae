"""Profiles: settings that fit a real VLM on one GPU of 8, 12, 16 (T4) or 24 GB.

The models are Apache-2.0, but for that of 12gb-3b: Qwen2.5-VL-3B, the paper's smaller model, may not be used commercially.
Learning rate and warm-up are usual values for LoRA, not tuned. Beside each profile stands what `memory.estimate` counts at the
peak, for prompts of one full-size image and 128 text tokens (a test keeps it true; `python -m cppo_ref audit --profile NAME`
shows all phases, and seconds per step). As many completions are sampled at a time as leave a third of the memory free: what
`memory` does not count lives there (fragments of the allocator, longer questions, your desktop).
"""

from typing import Any

_2B = {
    "model": "Qwen/Qwen3-VL-2B-Instruct",
    "dtype": "bfloat16",
    "activation_checkpointing": True,
    "group_size": 8,
    "learning_rate": 2e-5,
    "prompts_per_step": 4,
    "probe_rows": 8,
    "rollout_batch_size": 32,
    "steps": 200,
    "warmup_steps": 10,
}
_12GB = {**_2B, "max_pixels": 448 * 448, "max_new_tokens": 512, "micro_batch_size": 2}
PROFILES: dict[str, dict[str, Any]] = {
    # 1.54 GB of 16-bit and 0.73 of 4-bit weights, 0.28 adapters with gradient and moments, 0.5 context: 3.04 GB before the
    # step; 16 completions at a time: 4.08 GB in the rollouts
    "8gb": {**_2B, "max_pixels": 384 * 384, "max_new_tokens": 256, "micro_batch_size": 1, "rollout_batch_size": 16},
    # 3.04 before the step as above; 32 completions at a time, 0.10 GB each: 6.26 GB in the rollouts
    "12gb": _12GB,
    # the paper's smaller model: 4.71 before the step; its cache is small, 0.03 GB a completion: 6.37 GB in the update
    "12gb-3b": {**_12GB, "model": "Qwen/Qwen2.5-VL-3B-Instruct"},
    # one free Colab session: smaller images and shorter answers than 12gb, 4.91 GB. A T4 only emulates bfloat16: adapters
    # stay in float32, a loss scaler guards their gradients. Whether a trained VLM's values fit float16 was not tested here
    "t4": {**_12GB, "dtype": "float16", "max_pixels": 320 * 320, "max_new_tokens": 256},
    # 4.67 before the step; 32 completions at a time, 0.23 GB each: 12.23 GB in the rollouts
    "24gb": {**_12GB, "model": "Qwen/Qwen3-VL-4B-Instruct", "max_pixels": 640 * 640, "max_new_tokens": 1024},
}
CAPACITY = {"8gb": 8e9, "12gb": 12e9, "12gb-3b": 12e9, "t4": 15e9, "24gb": 24e9}  # bytes; a T4 shows 15 of its 16 GB
