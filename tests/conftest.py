"""What every test shares: the offline switch, shapes checked at run time, and small policies."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked child would wait forever for its parent's other threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from jaxtyping import install_import_hook

install_import_hook("cppo_ref", "shape_checker.check")
