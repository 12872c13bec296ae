"""CPPO on TRL's engine, for those who outgrow one GPU: data parallelism, sharding, vLLM.

Here:  TRL's GRPOTrainer, three of its methods extended and none copied: rollouts bring views and perception tokens along, a
       forward keeps what the contrast takes of it, the loss gains λ · CPL. A completion is computed behind its own prompt.
Why:   all processes run the same forwards, or some wait for the others forever: rows are added where a process needs fewer.
"""

from copy import copy
from dataclasses import dataclass, fields, make_dataclass
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
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
    from trl.data_utils import prepare_multimodal_messages
    from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid
except ImportError as error:
    raise ImportError('CPPOTrainer stands on TRL, which is not installed: pip install "cppo_ref[trl]"') from error

OURS = ["cpl_weight", "tau", "top_fraction", "ranking", "kl_estimator", "detach_anchor", "advantage_gate"]
OURS += ["preserving", "removing", "preserving_strength", "removing_strength"]
PIXELS = ["pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids"]
COUNTS, TOKENS = ["num_images", "num_tiles"], ["token_type_ids", "mm_token_type_ids"]  # what TRL's forward takes beside ids
ROUNDING = 1e-2  # divided by its std + 1e-4, the rounding of a mean of equal rewards is an advantage of up to 1e-3
_Both: Any = make_dataclass("_", [(f.name, f.type, copy(f)) for f in fields(CPPOConfig) if f.name in OURS], bases=(GRPOConfig,))


@dataclass
class CPPOTrainerConfig(_Both):
    """TRL's settings, and those of CPPO (`OURS`) under this package's names, with its defaults and help."""

    beta: float = CPPOConfig.kl_weight
    use_bias_correction_kl: bool = False  # TRL's default multiplies the KL by the ratio

    @property
    def cppo(self) -> CPPOConfig:
        """CPPO's settings as the package's functions take them; InputError if one is wrong."""
        return CPPOConfig(**{name: getattr(self, name) for name in (*OURS, "seed", "temperature")})


class CPPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with CPPO's loss in training; rows have a `prompt` (messages), and an `image` or `images`.

    InputError if a setting is wrong, a row has no image, or the exact KL meets a head that is sharded, scaled or capped.
    """

    args: Any
    model: Any
    accelerator: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cppo, bare = self.args.cppo, self.accelerator.unwrap_model(self.model)
        self.vlm: Any = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        self._seen: dict[str, Tensor] = {}  # of the last forward
        self.vlm.base_model.register_forward_hook(lambda m, i, output: self._seen.update(hidden=output.last_hidden_state))
        if self.cppo.kl_estimator == "exact":
            check_head(self.vlm.config)
            if self.is_fsdp_enabled or getattr(self.args.deepspeed_plugin, "zero_stage", 0) == 3:
                raise InputError("kl_estimator is 'exact', but FSDP and ZeRO-3 shard the head: take k3 or k1, or use ZeRO-2")
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
        least = 1e-6 if self.scale_rewards == "none" else ROUNDING
        gate = batch["advantages"] > least if self.cppo.advantage_gate else mask.any(dim=1)
        rows, size = self._alike(gate), self.args.per_device_train_batch_size
        entropy, removed = torch.zeros(2, *mask.shape, device=mask.device)
        with torch.no_grad():
            for values, view in ((entropy, ""), (removed, "removed")) if len(rows) else ():
                values[rows] = self._score(self.model, batch, rows, view, batch_size=size, compute_entropy=True)[1].float()
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else self.vlm.dtype
        moved = mask & gate[:, None] & beyond_rounding(entropy, removed, dtype)
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
            inputs_of = self._tokenize_prompts([prepare_multimodal_messages(inputs[i]["prompt"], view) for i, view in rows])[2]
            shown: Any = {name: torch.as_tensor(np.array(inputs_of[name])) for name in PIXELS if name in inputs_of}
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
        """TRL's forward on some rows, the pixels of `view` (if named) for those of their images: (what is kept of it, H)."""
        parts = split_pixel_values_by_grid({name: batch[name] for name in (*PIXELS, *COUNTS, *TOKENS) if name in batch})
        parts |= {"pixel_values": batch[view]} if view else {}
        taken = {n: [part[i] for i in rows.tolist()] if isinstance(part, list) else part[rows] for n, part in parts.items()}
        ids, mask = (torch.cat([batch[f"prompt_{n}"], batch[f"completion_{n}"]], dim=1)[rows] for n in ("ids", "mask"))
        tokens, images = batch["completion_ids"].shape[1], unsplit_pixel_values_by_grid(taken)
        entropy = self._get_per_token_logps_and_entropies(model, ids, mask, tokens, **images, **options)[1]
        return self._seen.pop("kept"), entropy

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> tuple:
        """TRL's forward; what the contrast takes of it is kept: log π, or for the exact KL the last hidden states."""
        scored = super()._get_per_token_logps_and_entropies(*args, **options)
        exact, hidden = self.cppo.kl_estimator == "exact", self._seen.pop("hidden", scored[0])  # a reference model shows none
        self._seen["kept"] = hidden[:, -scored[0].shape[1] - 1 : -1] if exact else scored[0]
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Float[Tensor, ""]:
        """TRL's loss, plus λ · CPL: each perception token of the rollout batch weighs the same, whichever update it is in."""
        loss = super()._compute_loss(model, inputs)
        if "selected" not in inputs:
            return loss
        if len(rows := self._alike(inputs["selected"].any(dim=1))) == 0:
            self._metrics["train"]["cpl"].append(0.0)
            return loss
        anchor = self._seen.pop("kept")[rows]
        seen = [anchor.detach() if self.cppo.detach_anchor else anchor]
        seen += [self._score(model, inputs, rows, view)[0] for view in ("preserved", "removed")]
        total = self._contrast(inputs["selected"][rows], inputs["completion_ids"][rows], *seen).sum()
        total = total * self.accelerator.num_processes * self.args.steps_per_generation / inputs["num_selected"]
        self._metrics["train"]["cpl"].append(self.accelerator.gather(total.detach()).mean().item())
        return loss + self.cppo.cpl_weight * total / self.current_gradient_accumulation_steps

    def _contrast(self, chosen: Bool[Tensor, "N T"], ids: Int[Tensor, "N T"], *seen: Tensor) -> Tensor:
        """softplus((KL⁺ − KL⁻)/τ) of the chosen tokens, from what was kept of the forwards with I, I⁺ and I⁻."""
        if self.cppo.kl_estimator != "exact":
            anchor, *views = (logprobs[chosen] for logprobs in seen)
            kl_preserved, kl_removed = (sampled_divergence(anchor, view, self.cppo.kl_estimator) for view in views)
            return contrast(kl_preserved, kl_removed, tau=self.cppo.tau)
        head = self.vlm.get_output_embeddings()

        def exact(anchor: Tensor, plus: Tensor, minus: Tensor, ids: Tensor) -> Tensor:
            """[N, H] of the three views and [N] to [N]: the perception loss of each token, by the exact KL."""
            with self.accelerator.autocast():
                anchor, plus, minus = (head(states).float() / self.temperature for states in (anchor, plus, minus))
            return contrastive_tokens(anchor, plus, minus, ids, self.cppo)

        return over_tokens(exact, chosen, *seen, ids, vocabulary=head.out_features)
