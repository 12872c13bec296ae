"""cppo_ref: a readable reference implementation of CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501)."""

import logging
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # text progress bars are meant
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its CPU backend warns of an optional kernel

__version__ = "0.1.0"
