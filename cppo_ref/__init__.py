"""cppo_ref: a readable reference implementation of CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501)."""

import logging
import warnings
from typing import Any

warnings.filterwarnings("ignore", message="IProgress not found")  # text progress bars are meant
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its CPU backend warns of an optional kernel

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`cppo_ref.load_policy`, imported when it is asked for: it brings transformers along."""
    if name == "load_policy":
        from cppo_ref.vlm.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'cppo_ref' has no attribute {name!r}")
