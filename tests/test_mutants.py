"""A changed sign in the package makes the notebook that teaches it fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIGNS = {
    "cpl.py": ("kl_preserved - kl_removed", "kl_removed - kl_preserved", "05_contrastive_perception_loss"),
    "perception.py": ("removed_entropy - entropy", "entropy - removed_entropy", "04_perception_tokens"),
    "grpo.py": ("return -torch.minimum", "return torch.minimum", "02_grpo_by_hand"),
}


@pytest.mark.parametrize("module", SIGNS)
def test_a_changed_sign_makes_a_notebook_fail(module, tmp_path):
    old, new, notebook = SIGNS[module]
    package = tmp_path / "cppo_ref"
    shutil.copytree(ROOT / "cppo_ref", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(ROOT / "data")
    source = (package / module).read_text()
    assert source.count(old) == 1
    (package / module).write_text(source.replace(old, new))
    result = run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path)
    assert result.returncode == 1, result.stdout[-2000:]
    assert "AssertionError" in result.stdout, f"failed for another reason:\n{result.stdout[-2000:]}"


def run_notebook(path, package_folder):
    """nbval up to the first failure, with the package in `package_folder` in front of the installed one."""
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(package_folder), "CPPO_FAST": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", str(path)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
