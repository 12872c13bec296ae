"""Graders for the exercises of the course: each runs your function on hand-worked cases and says what is wrong with it.

They know nothing of the package's own losses, and the package does not know them: two independent answers to one question.
"""

from cppo_ref.grading.coverage import check_covered_share
from cppo_ref.grading.cpl import check_contrastive_loss, check_gated_loss, check_view_kl
from cppo_ref.grading.evidence import check_sign_flip_p, check_t_interval, check_verdict
from cppo_ref.grading.grader import MistakeError
from cppo_ref.grading.grpo import check_clipped_surrogate, check_group_advantages, check_kl_to_reference, check_token_weights
from cppo_ref.grading.page import predicted, written
from cppo_ref.grading.perception import check_entropy_shift, check_select_perception_tokens, check_token_entropy
from cppo_ref.grading.perturbations import check_dim, check_hide_quarter
from cppo_ref.grading.rewards import check_extract_boxed, check_format_reward, check_reward
from cppo_ref.grading.step import check_micro_batch_losses, check_rows_to_perturb, check_total_loss, check_worth_an_update

__all__ = [
    "MistakeError",
    "check_clipped_surrogate",
    "check_contrastive_loss",
    "check_covered_share",
    "check_dim",
    "check_entropy_shift",
    "check_extract_boxed",
    "check_format_reward",
    "check_gated_loss",
    "check_group_advantages",
    "check_hide_quarter",
    "check_kl_to_reference",
    "check_micro_batch_losses",
    "check_reward",
    "check_rows_to_perturb",
    "check_select_perception_tokens",
    "check_sign_flip_p",
    "check_t_interval",
    "check_token_entropy",
    "check_token_weights",
    "check_total_loss",
    "check_verdict",
    "check_view_kl",
    "check_worth_an_update",
    "predicted",
    "written",
]
