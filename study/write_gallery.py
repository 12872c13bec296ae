"""Draw the failure gallery (study/images/failure_*.png) and write its counts (data/results/failures.json)."""

import json
from pathlib import Path

import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.pictures.plots import save_figure
from cppo_ref.runs.commands import quiet
from cppo_ref.vlm.policy import policy_for
from study.arms import LEARNING_RATE
from study.gallery import KINDS, cases, look, observe, show_case, summary
from study.plan import VALIDATION_SEEDS

ROOT = Path(__file__).parent.parent
TRAIN_STEPS, PROMPTS = 20, 64


def main() -> None:
    """A CPPO run with a validation seed, looked at after 20 steps."""
    quiet()
    torch.set_num_threads(1)
    config = CPPOConfig(model="tiny", seed=VALIDATION_SEEDS, device="cpu", learning_rate=LEARNING_RATE, unpack=True)
    policy = policy_for(config)
    batch = look(policy, config, TRAIN_STEPS, PROMPTS)
    tokens = observe(policy, batch, config, TRAIN_STEPS)
    for kind, case in cases(tokens).items():
        figure = show_case(batch, tokens, case, KINDS[kind], config, TRAIN_STEPS)
        save_figure(figure, ROOT / "study" / "images" / f"failure_{kind}.png")
    record = {"seed": config.seed, "train_steps": TRAIN_STEPS, "prompts": PROMPTS} | summary(tokens)
    (ROOT / "data" / "results" / "failures.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
