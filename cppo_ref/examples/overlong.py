"""Overlong prompts are found before the first step, counted and dropped; a limit that cuts right answers is refused.

Authors: prompts above a limit (verl: 512 tokens) are filtered out of the dataset; AReaL counts image tokens.
Here:  the same, image tokens counted; the run says how many it dropped. The limit is never above what the context leaves beside
       the completion.
Why:   every row is read once on the way, so a malformed one stops the run before it starts and not in its third hour.
"""

from typing import Any

from tqdm import tqdm

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.rows import Rows, images_of, row_at
from cppo_ref.vlm.policy import Policy
from cppo_ref.worlds.shapes import asked_colors, completion_text


def drop_overlong(policy: Policy, rows: Rows, config: CPPOConfig, *, progress: bool = True) -> Rows:
    """The rows whose prompt fits into the context beside `max_new_tokens`, and into `max_prompt_tokens` if that is not 0.

    Prints how many were dropped, if any. One prompt is encoded at a time; the shape world's are short and go unread.

    Raises:
        InputError: a malformed row, unless `on_bad_row` skips it, or none is left.
    """
    if config.data == "shapes":
        return rows
    context = policy.model.config.get_text_config().max_position_embeddings
    limit = min(config.max_prompt_tokens or context, context - config.max_new_tokens)
    indices = range(len(rows))
    lengths, refused = {}, []
    with tqdm(indices, desc="prompts", leave=False, disable=None if progress else True) as bar:  # None: only on a terminal
        for index in bar:
            try:
                lengths[index] = prompt_tokens(policy, row_at(rows, index))
            except InputError as error:
                if config.on_bad_row == "stop":
                    raise
                refused.append(error)
    if refused:
        print(f"refused {len(refused)} of {len(rows)} rows, the first: {refused[0]}")
    if not lengths:
        raise InputError(f"all {len(rows)} rows were refused, the first: {refused[0]}")
    fitting = [index for index, length in lengths.items() if length <= limit]
    if not fitting:
        raise InputError(
            f"all {len(lengths)} prompts are longer than {limit} tokens, the shortest has {min(lengths.values())}: "
            "shorten the questions, raise --max_prompt_tokens, or lower --max_new_tokens or --max_pixels"
        )
    if len(fitting) < len(lengths):
        print(f"dropped {len(lengths) - len(fitting)} of {len(rows)} rows: prompt longer than {limit} tokens")
    return rows.keep(fitting)


def check_first_rows(policy: Policy, rows: list[dict[str, Any]], config: CPPOConfig) -> None:
    """Raise InputError if prompts of `rows` do not fit, or a right answer would be cut, so that it could not be rewarded."""
    prompts = policy.encode([images_of(row) for row in rows], [row["question"] for row in rows])
    policy.check_length(prompts, config.max_new_tokens)
    needed = max(answer_tokens(policy, row, config.data) for row in rows)
    if config.max_new_tokens < needed:
        raise InputError(
            f"max_new_tokens is {config.max_new_tokens}, but a right answer takes {needed} tokens, its end included: "
            f"give --max_new_tokens {needed} or more"
        )


def answer_tokens(policy: Policy, row: dict[str, Any], data: str = "shapes") -> int:
    """Tokens of the right answer in the shape world's grammar, or of the boxed answer of other data, with the end."""
    text = f"\\boxed{{{row['answer']}}}"
    if data == "shapes":
        text = completion_text([thing["color"] for thing in row["objects"]], asked_colors(row["question"]))
    return len(policy.tokenizer.tokenize(text)) + 1


def prompt_tokens(policy: Policy, row: dict[str, Any]) -> int:
    """Tokens of a row's prompt as the model sees it: template, question and images."""
    return policy.encode([images_of(row)], [row["question"]]).inputs["input_ids"].shape[1]
