"""CPPO on TRL's engine, for those who outgrow one GPU: data parallelism, sharding, vLLM.

Here:  TRL's GRPOTrainer, three of its methods extended and none copied: rollouts bring views and perception tokens along, a
       forward keeps what the contrast takes of it, the loss gains λ · CPL. A completion is computed behind its own prompt.
Why:   all processes run the same forwards, or some wait for the others forever: rows are added where a process needs fewer.
       The exact KL takes the whole head; where that is sharded, k3 and k1 are left, which take log-probabilities.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.cpl import contrast, sampled_divergence
from cppo_ref.examples.views import views_of
from cppo_ref.perception import entropy_shift, select_perception_tokens
from cppo_ref.step import contrastive_tokens
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.policy import forbidden_ids
from cppo_ref.vlm.quantization import check_head
from cppo_ref.vlm.scoring import beyond_rounding

try:
    from trl import GRPOConfig, GRPOTrainer
    from trl.data_utils import prepare_multimodal_messages
    from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid
except ImportError as error:
    raise ImportError('CPPOTrainer stands on TRL, which is not installed: pip install "cppo_ref[trl]"') from error

SHARED = ["seed", "temperature", "cpl_weight", "tau", "top_fraction", "ranking", "kl_estimator", "detach_anchor"]
SHARED += ["advantage_gate", "preserving", "removing", "preserving_strength", "removing_strength"]
# what TRL's forward takes beside token ids: of images, their counts per row, of tokens
PIXELS = ["pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids"]
COUNTS, TOKENS = ["num_images", "num_tiles"], ["token_type_ids", "mm_token_type_ids"]
ROUNDING = 1e-2  # TRL's advantages of a group of equal rewards are the rounding of its mean, up to 1e-3


@dataclass
class CPPOTrainerConfig(GRPOConfig):
    """TRL's settings, and CPPO's under this package's names and with its defaults; their meaning: `CPPOConfig`."""

    beta: float = CPPOConfig.kl_weight
    use_bias_correction_kl: bool = False  # TRL's default multiplies the KL by the ratio
    cpl_weight: float = CPPOConfig.cpl_weight
    tau: float = CPPOConfig.tau
    top_fraction: float = CPPOConfig.top_fraction
    ranking: str = CPPOConfig.ranking
    kl_estimator: str = CPPOConfig.kl_estimator
    detach_anchor: bool = CPPOConfig.detach_anchor
    advantage_gate: bool = CPPOConfig.advantage_gate
    preserving: list[str] = field(default_factory=lambda: CPPOConfig().preserving)
    removing: list[str] = field(default_factory=lambda: CPPOConfig().removing)
    preserving_strength: float = CPPOConfig.preserving_strength
    removing_strength: float = CPPOConfig.removing_strength

    @property
    def cppo(self) -> CPPOConfig:
        """CPPO's settings as the package's functions take them; InputError if one is wrong."""
        return CPPOConfig(**{name: getattr(self, name) for name in SHARED})


class CPPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with CPPO's loss in training; rows have a `prompt` (messages), and an `image` or `images`.

    Raises:
        InputError: a setting is wrong, or the exact KL meets a head that is sharded, or whose logits are scaled or capped.
    """

    args: CPPOTrainerConfig
    model: Any
    accelerator: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cppo, bare = self.args.cppo, self.accelerator.unwrap_model(self.model)
        self.vlm: Any = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        self._hidden: deque[Tensor] = deque(maxlen=1)  # the last hidden states of the last forward
        self.vlm.base_model.register_forward_hook(lambda module, inputs, output: self._hidden.append(output.last_hidden_state))
        if self.cppo.kl_estimator == "exact":
            check_head(self.vlm.config)
            plugin = self.args.deepspeed_plugin
            if self.is_fsdp_enabled or (plugin and plugin.zero_stage == 3):
                raise InputError(
                    "kl_estimator is 'exact', but FSDP and ZeRO-3 shard the head: take k3 or k1, or DDP or ZeRO-2"
                )
        for parameter in self.model.parameters():  # TRL rounds adapters beside 4-bit weights; small updates would be lost
            if parameter.requires_grad and getattr(self.vlm, "is_loaded_in_4bit", False):
                parameter.data = parameter.data.float()
        forbidden = forbidden_ids(self.vlm.config, self._tokenizer, self.eos_token_ids)
        if self.use_vllm:
            self.vllm_generation.generation_kwargs["bad_words"] = self._tokenizer.convert_ids_to_tokens(forbidden)
        else:
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"] = forbidden

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollouts, rewards and advantages; in training with views and perception tokens."""
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training or self.cppo.cpl_weight == 0:
            return batch
        batch |= self._views(inputs, batch)
        mask = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
        gate = batch["advantages"] > ROUNDING if self.cppo.advantage_gate else mask.any(dim=1)
        rows, size = self._alike(gate), self.args.per_device_train_batch_size
        entropy, removed = torch.zeros(2, *mask.shape, device=mask.device)
        with torch.no_grad():
            for values, view in ((entropy, ""), (removed, "removed")) if len(rows) else ():
                values[rows] = self._score(self.model, batch, rows, view, batch_size=size, compute_entropy=True)[1].float()
        moved = mask & gate[:, None] & beyond_rounding(entropy, removed, self.vlm.dtype)
        ranked = {"top_fraction": self.cppo.top_fraction, "ranking": self.cppo.ranking}
        selected = select_perception_tokens(entropy_shift(entropy, removed, moved), removed, moved, **ranked)
        return batch | {"selected": selected, "num_selected": self.accelerator.gather(selected.sum()).sum()}

    def _views(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        """The pixels of I⁺ and I⁻, a tensor for each row: in lists, TRL's shuffle and split keep them beside their rows."""
        every, accumulated = self.args.steps_per_generation * self.num_iterations, self.args.gradient_accumulation_steps
        step, before = self.state.global_step // max(every // accumulated, 1), self._step % accumulated // every
        first = (before * self.accelerator.num_processes + self.accelerator.process_index) * len(inputs)
        prompts = [(first + i) // self.num_generations for i in range(len(inputs))]
        one_of = {prompt: i for i, prompt in enumerate(prompts)}  # a row of each prompt: views are of prompts
        both = [views_of(inputs[i], prompt, self.cppo, step) for prompt, i in one_of.items()]
        views = {}
        for name, images in zip(("preserved", "removed"), zip(*both, strict=True), strict=True):
            rows = zip(one_of.values(), images, strict=True)
            fields = self._tokenize_prompts([prepare_multimodal_messages(inputs[i]["prompt"], view) for i, view in rows])[2]
            shown = {name: torch.as_tensor(np.array(fields[name])) for name in PIXELS if name in fields}
            shown |= {name: [batch[name][i] for i in one_of.values()] for name in COUNTS if name in batch}
            pixels = split_pixel_values_by_grid(shown)["pixel_values"]
            of_prompt = dict(zip(one_of, pixels if isinstance(pixels, list) else pixels.split(1), strict=True))
            views[name] = [of_prompt[prompt].to(self.accelerator.device) for prompt in prompts]
        return views

    def _alike(self, needed: Bool[Tensor, " B"]) -> Int[Tensor, " N"]:
        """The rows that are needed, and others up to the most that any process needs: all run the same forwards, or none."""
        most = int(self.accelerator.gather(needed.sum()).max())
        return (~needed).int().argsort(stable=True)[:most]

    def _score(self, model: Any, batch: dict[str, Any], rows: Int[Tensor, " N"], view: str, **options: Any) -> tuple:
        """TRL's forward on some rows, the pixels of `view` (if named) in place of their images': (log π, H or None, …)."""
        parts = split_pixel_values_by_grid({name: batch[name] for name in (*PIXELS, *COUNTS, *TOKENS) if name in batch})
        parts |= {"pixel_values": batch[view]} if view else {}
        taken = {n: [part[i] for i in rows.tolist()] if isinstance(part, list) else part[rows] for n, part in parts.items()}
        ids, mask = (torch.cat([batch[f"prompt_{n}"], batch[f"completion_{n}"]], dim=1)[rows] for n in ("ids", "mask"))
        tokens, images = batch["completion_ids"].shape[1], unsplit_pixel_values_by_grid(taken)
        return self._get_per_token_logps_and_entropies(model, ids, mask, tokens, **images, **options)

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> tuple:
        """TRL's forward; what the contrast takes of it is kept: log π, or for the exact KL the last hidden states."""
        scored = super()._get_per_token_logps_and_entropies(*args, **options)
        exact, tokens = self.cppo.kl_estimator == "exact", scored[0].shape[1]
        self._kept = self._hidden.pop()[:, -tokens - 1 : -1] if exact else scored[0]
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Float[Tensor, ""]:
        """TRL's loss, plus λ · CPL: a mean over the perception tokens of all processes and all micro-batches of an update."""
        loss = super()._compute_loss(model, inputs)
        rows = self._alike(inputs["selected"].any(dim=1)) if "selected" in inputs else []
        if len(rows) == 0:
            return loss
        seen = [self._kept[rows]]
        for view in ("preserved", "removed"):
            self._score(model, inputs, rows, view)
            seen.append(self._kept)
        total = self._contrast(inputs["selected"][rows], inputs["completion_ids"][rows], *seen).sum()
        total = total * self.accelerator.num_processes * self.args.steps_per_generation / inputs["num_selected"]
        self._metrics["train"]["cpl"].append(self.accelerator.gather(total.detach()).mean().item())
        return loss + self.cppo.cpl_weight * total / self.current_gradient_accumulation_steps

    def _contrast(self, chosen: Bool[Tensor, "N T"], ids: Int[Tensor, "N T"], *seen: Tensor) -> Tensor:
        """softplus((KL⁺ − KL⁻)/τ) of the chosen tokens, from what was kept of the forwards with I, I⁺ and I⁻."""
        if self.cppo.kl_estimator != "exact":
            anchor, *views = (logprobs[chosen] for logprobs in seen)
            anchor, how = anchor.detach() if self.cppo.detach_anchor else anchor, self.cppo.kl_estimator
            return contrast(*(sampled_divergence(anchor, view, estimator=how) for view in views), tau=self.cppo.tau)
        head = self.vlm.get_output_embeddings()

        def exact(*states_and_ids: Tensor) -> Tensor:
            """[N, H] under each image and [N] to [N]."""
            *states, ids = states_and_ids
            with self.accelerator.autocast():
                return contrastive_tokens(*(head(hidden).float() / self.temperature for hidden in states), ids, self.cppo)

        return over_tokens(exact, chosen, *seen, ids, vocabulary=head.out_features)
