"""Profiles: settings that fit a real VLM on one GPU of 8, 12, 16 (T4) or 24 GB.

The models are Apache-2.0. Qwen2.5-VL-3B, the paper's smaller model, may not be used commercially: choose it with --model.
Learning rate and warm-up are usual values for LoRA, not tuned. Beside each profile stands what `memory.estimate` counts at the
peak, for prompts of one full-size image and 128 text tokens (a test keeps it true; `python -m cppo_ref audit --profile NAME`
shows all phases). The rest is left free on purpose: fragments of the allocator, longer questions and your desktop live there.
"""

from typing import Any

_EVERYWHERE = {
    "activation_checkpointing": True,
    "group_size": 8,
    "learning_rate": 2e-5,
    "prompts_per_step": 4,
    "steps": 200,
    "warmup_steps": 10,
}

_12GB = {
    **_EVERYWHERE,
    "model": "Qwen/Qwen3-VL-2B-Instruct",
    "dtype": "bfloat16",
    "max_pixels": 448 * 448,
    "max_new_tokens": 512,
    "micro_batch_size": 2,
    "rollout_batch_size": 16,
}
PROFILES: dict[str, dict[str, Any]] = {
    # 1.54 GB of 16-bit and 0.73 of 4-bit weights, 0.28 adapters with gradient and moments, 0.5 context, 0.93 update: 3.97 GB
    "8gb": {
        **_EVERYWHERE,
        "model": "Qwen/Qwen3-VL-2B-Instruct",
        "dtype": "bfloat16",
        "max_pixels": 384 * 384,
        "max_new_tokens": 256,
        "micro_batch_size": 1,
        "rollout_batch_size": 8,
    },
    # 3.05 before the step as above; 16 completions at a time, 0.10 GB each: 4.66 GB in the rollouts
    "12gb": _12GB,
    # as 12gb: 4.66 GB. A T4 computes in float16 only: adapters stay in float32, a loss scaler guards their gradients. Whether
    # the 16-bit parts of a trained VLM stay in float16's range has not been tested here
    "t4": {**_12GB, "dtype": "float16"},
    # 4.67 before the step; 16 completions at a time, 0.23 GB each: 8.45 GB in the rollouts
    "24gb": {
        **_EVERYWHERE,
        "model": "Qwen/Qwen3-VL-4B-Instruct",
        "dtype": "bfloat16",
        "max_pixels": 640 * 640,
        "max_new_tokens": 1024,
        "micro_batch_size": 2,
        "rollout_batch_size": 16,
    },
}
CAPACITY = {"8gb": 8e9, "12gb": 12e9, "t4": 15e9, "24gb": 24e9}  # bytes; a T4 shows 15 of its 16 GB
