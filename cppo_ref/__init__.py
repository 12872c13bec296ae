"""cppo_ref: a readable reference implementation of CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501)."""

__version__ = "0.1.0"
