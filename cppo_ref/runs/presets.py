"""Presets: the loss choices of CPPO's variants, as settings of `CPPOConfig`."""

from typing import Any

_PUBLISHED = {"detach_anchor": False, "removing": ["noise_patches", "zoom_crop"]}
# Loss choices and kinds of view. Reward, drawing of the views, means over micro-batches, group size, minibatches, learning rate
# and weight decay stay ours: no preset repeats a published run. docs/details.md has each difference, with its size.
PRESETS: dict[str, dict[str, Any]] = {
    # after the paper's text: exact KL between distributions, largest entropy increase
    "paper": {**_PUBLISHED, "kl_estimator": "exact", "ranking": "absolute"},
    # after the authors' verl recipe
    "verl": {**_PUBLISHED, "kl_estimator": "k3", "ranking": "normalized"},
    # after the authors' AReaL engine: k1, no KL to the reference, wider clip, blur among the preserving views
    "areal": {
        **_PUBLISHED,
        "kl_estimator": "k1",
        "ranking": "normalized",
        "kl_weight": 0.0,
        "clip_low": 0.4,
        "clip_high": 0.4,
        "preserving": ["color_jitter", "perspective", "rotation", "blur"],
    },
    # ours: the defaults of CPPOConfig
    "cppo-ref": {},
    # the baseline
    "grpo": {"cpl_weight": 0.0},
}
