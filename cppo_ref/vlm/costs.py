"""Time: what a step will cost on a GPU, counted from the model's shapes before anything is loaded.

A phase does arithmetic, moves bytes and launches kernels. It takes as long as the slowest of the three:

    seconds = max(FLOP / (EFFICIENCY · rate), bytes / (EFFICIENCY · bandwidth), kernels · LAUNCH)

The counts follow from the settings; EFFICIENCY, LAUNCH and KERNELS are assumptions, not measured here yet. Every completion is
taken to be of full length, and half of the rows to be looked at by CPL.
"""

from dataclasses import dataclass

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.memory import NF4, QUESTION_TOKENS, ModelSize

CARDS = {  # dense 16-bit tensor TFLOP/s with float32 sums, GB/s of memory: the vendor's numbers
    "T4": (65, 320),
    "RTX 3060": (25, 360),
    "RTX 4070": (58, 504),
    "RTX 4090": (165, 1008),
    "L4": (121, 300),
    "A100": (312, 1555),
}
EFFICIENCY = 0.5  # share of a card's rates that a real program reaches
LAUNCH = 7e-6  # seconds between two kernels that Python launches
KERNELS = 85, 70  # per decoder layer, adapters beside the weights: packed ones, unpacked ones
GATED = 0.5  # share of the rows with A > 0
UNPACKING = NF4 + 2 + 2  # bytes moved for each 4-bit weight of a product: read, written in 16 bits, read


@dataclass(frozen=True)
class Work:
    """What a phase does."""

    flop: float
    moved: float  # bytes
    kernels: float

    def seconds(self, card: str) -> float:
        """On a card of `CARDS`."""
        rate, bandwidth = CARDS[card]
        return max(self.flop / (EFFICIENCY * rate * 1e12), self.moved / (EFFICIENCY * bandwidth * 1e9), self.kernels * LAUNCH)


def step_work(size: ModelSize, run: CPPOConfig) -> dict[str, Work]:
    """The work of one step's phases: rollouts, reference, detection, update."""
    rows, new, prompt = run.prompts_per_step * run.group_size, run.max_new_tokens, size.image_tokens + QUESTION_TOKENS
    language, head = size.language_weights, size.hidden * size.vocabulary
    tower = max(size.nf4_weights + size.other_weights - language - head, 0)  # vision tower and projector
    packed = run.quantize == "nf4" and not run.unpack
    read = 2 * head + (UNPACKING if packed else 2) * language  # bytes of the weights in one pass of the language model

    # rollouts: each prompt once, then token by token, `rollout_batch_size` rows at a time
    sampled = min(rows, run.rollout_batch_size)
    batches = -(-rows // sampled)
    cache = 4 * size.layers * size.cache_width * (prompt + new / 2)  # bytes of keys and values that a row reads for a token
    image = 2 * tower * size.patches
    rollouts = Work(
        flop=run.prompts_per_step * (2 * language * prompt + image) + rows * new * 2 * (language + head),
        moved=batches * new * (read + sampled * cache),
        kernels=batches * new * size.layers * KERNELS[not packed],
    )

    def passes(share: float, factor: int) -> Work:
        """`share` of the rows through the model, as packs of `micro_batch_size`; 0, 1 (forward), 2 (and backward), … times"""
        packs = max(share * rows / min(rows, run.micro_batch_size), 1)
        prompts = max(packs, share * run.prompts_per_step)  # a prompt is computed once in each pack that needs it
        tokens = prompts * prompt + share * rows * new
        attention = 4 * size.layers * size.query_width * tokens * tokens / prompts
        flop = 2 * language * tokens + attention + prompts * image + 2 * head * share * rows * new
        launched = packs * (size.layers + size.vision_layers) * KERNELS[not packed]
        return Work(factor * flop, factor * packs * read, factor * launched)

    learned = 3 if run.activation_checkpointing else 2  # the frozen weights get no gradient: backward costs a forward
    gated = GATED if run.advantage_gate else 1
    looked = 1 + (2 * gated if run.cpl_weight > 0 else 0)
    before = (run.kl_weight > 0) + (not run.on_policy)  # log π of the reference, and of the policy itself
    return {
        "rollouts": rollouts,
        "reference": passes(1, before),
        "detection": passes(gated, int(run.cpl_weight > 0)),
        "update": passes(looked, learned * run.num_epochs),
    }


def step_seconds(size: ModelSize, run: CPPOConfig, card: str) -> float:
    """Of one step on `card`, by the estimate."""
    return sum(work.seconds(card) for work in step_work(size, run).values())


def time_table(size: ModelSize, run: CPPOConfig) -> str:
    """The calculation: each phase's work, its seconds on every card, and what 100 steps take."""
    cards = "".join(f"{card:>10}" for card in CARDS)
    lines = [f"  {'':<11}{'TFLOP':>8}{'GB moved':>10}{'kernels':>11}{cards}"]
    for phase, work in step_work(size, run).items():
        seconds = "".join(f"{work.seconds(card):>8.1f} s" for card in CARDS)
        lines.append(f"  {phase:<11}{work.flop / 1e12:>8.1f}{work.moved / 1e9:>10,.0f}{work.kernels / 1e3:>9,.0f} k{seconds}")
    whole = {card: step_seconds(size, run, card) for card in CARDS}
    lines.append(f"  {'a step':<40}" + "".join(f"{seconds:>8.0f} s" for seconds in whole.values()))
    lines.append(f"  {'100 steps':<40}" + "".join(f"{seconds / 36:>8.1f} h" for seconds in whole.values()))
    return "\n".join(lines)
