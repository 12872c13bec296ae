"""Graders for the exercises of the course: each runs your function on hand-worked cases and says what is wrong with it.

They know nothing of the package's own losses, and the package does not know them: two independent answers to one question.
"""

from cppo_ref.grading.answers import check_chart_reward, check_lucky_share, check_pass_at_k
from cppo_ref.grading.charts import check_turned_words, check_views_that_keep
from cppo_ref.grading.coverage import check_covered_share
from cppo_ref.grading.cpl import check_contrastive_loss, check_gated_loss, check_info_nce, check_view_kl
from cppo_ref.grading.detection import check_auroc, check_precision_recall, check_word_shifts
from cppo_ref.grading.evidence import check_sign_flip_p, check_t_interval, check_verdict
from cppo_ref.grading.grader import MistakeError
from cppo_ref.grading.groups import check_clipped_share, check_leave_one_out, check_prompts_to_sample
from cppo_ref.grading.grpo import check_clipped_surrogate, check_group_advantages, check_kl_to_reference, check_token_weights
from cppo_ref.grading.logs import check_cpl_trouble, check_run_trouble
from cppo_ref.grading.memory import check_bytes_per_weight, check_cache_bytes
from cppo_ref.grading.page import predicted, written
from cppo_ref.grading.perception import check_entropy_shift, check_select_perception_tokens, check_token_entropy
from cppo_ref.grading.perturbations import check_dim, check_hide_quarter
from cppo_ref.grading.processes import check_global_mean
from cppo_ref.grading.rewards import check_extract_boxed, check_format_reward, check_reward
from cppo_ref.grading.step import check_micro_batch_losses, check_rows_to_perturb, check_total_loss, check_worth_an_update

__all__ = [
    "MistakeError",
    "check_auroc",
    "check_bytes_per_weight",
    "check_cache_bytes",
    "check_chart_reward",
    "check_clipped_share",
    "check_clipped_surrogate",
    "check_contrastive_loss",
    "check_covered_share",
    "check_cpl_trouble",
    "check_dim",
    "check_entropy_shift",
    "check_extract_boxed",
    "check_format_reward",
    "check_gated_loss",
    "check_global_mean",
    "check_group_advantages",
    "check_hide_quarter",
    "check_info_nce",
    "check_kl_to_reference",
    "check_leave_one_out",
    "check_lucky_share",
    "check_micro_batch_losses",
    "check_pass_at_k",
    "check_precision_recall",
    "check_prompts_to_sample",
    "check_reward",
    "check_rows_to_perturb",
    "check_run_trouble",
    "check_select_perception_tokens",
    "check_sign_flip_p",
    "check_t_interval",
    "check_token_entropy",
    "check_token_weights",
    "check_total_loss",
    "check_turned_words",
    "check_verdict",
    "check_view_kl",
    "check_views_that_keep",
    "check_word_shifts",
    "check_worth_an_update",
    "predicted",
    "written",
]
