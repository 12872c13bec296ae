"""The policy: what is quantised, what trains, padding, the reference, and sampling."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_families import TEXT, VISION, random_model
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.rollouts import completion_mask, generate_rollouts
from cppo_ref.runs.checkpoints import save_adapter
from cppo_ref.step import cppo_step
from cppo_ref.vlm.adapters import LoraOptions
from cppo_ref.vlm.devices import choose_device, choose_dtype
from cppo_ref.vlm.export import export_merged
from cppo_ref.vlm.policy import load_policy
from cppo_ref.vlm.prompts import Prompts, encode_prompts
from cppo_ref.worlds.splits import data_folder


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny", lora=LoraOptions(seed=3))


@pytest.fixture(scope="module")
def rows():
    rows = load_rows("shapes", "test")
    return [row_at(rows, i) for i in range(4)]


def roll(policy, rows, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    return generate_rollouts(policy, rows, rng=rng, **{"group_size": 2, "max_new_tokens": 24, **options})


def scores(policy, prompts, rollouts):
    with torch.no_grad():
        return policy.score(prompts, rollouts.completion_ids, rollouts.completion_mask)


def test_only_the_language_model_is_in_4_bits(policy):
    quantised = [name for name, module in policy.model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(quantised) == 3 * 7  # layers × (q, k, v, o, gate, up, down)
    assert all("language_model.layers" in name for name in quantised)
    assert "Linear4bit" not in str(type(policy.model.get_base_model().lm_head))


def test_only_adapters_train_and_they_sit_in_vision_and_language(policy):
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in names)
    assert sum("vision_tower" in name for name in names) == 2 * 2 * 6  # A and B × layers × (q, k, v, out, fc1, fc2)
    assert sum("language_model" in name for name in names) == 2 * 3 * 7
    assert all(parameter.dtype == torch.float32 for parameter in policy.trainable)


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_global_generator_alone(policy):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    again, other = load_policy("tiny", lora=LoraOptions(seed=3)), load_policy("tiny", lora=LoraOptions(seed=4))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable, again.trainable, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(policy.trainable, other.trainable, strict=True))


def test_more_padding_changes_no_logit(policy, rows):
    rollouts = roll(policy, rows)
    prompts = rollouts.prompts.take(rollouts.prompt_of_row)
    plain = scores(policy, prompts, rollouts)
    b, pad = len(plain), policy.tokenizer.pad_token_id
    wider = dict(prompts.inputs)
    wider["input_ids"] = torch.cat([torch.full((b, 7), pad), wider["input_ids"]], dim=1)
    wider["attention_mask"] = torch.cat([torch.zeros(b, 7, dtype=torch.long), wider["attention_mask"]], dim=1)
    padded = scores(policy, type(prompts)(wider), rollouts)
    assert_close(padded, plain, atol=1e-5, rtol=1e-5)


def test_a_prompt_padded_on_the_right_is_refused(policy, rows):
    """Its first token would be predicted from padding."""
    prompts = policy.encode([row["image"] for row in rows[:2]], [row["question"] for row in rows[:2]])
    right = dict(prompts.inputs)
    right["input_ids"] = F.pad(right["input_ids"], (0, 5), value=policy.tokenizer.pad_token_id)
    right["attention_mask"] = F.pad(right["attention_mask"], (0, 5))
    right["attention_mask"][0] = 1
    with pytest.raises(InputError, match="prompt 1 is padded on the right, expected padding on the left"):
        Prompts(right, prompts.owned)


def test_a_processor_that_pads_on_the_right_is_refused(policy, rows):
    def stubborn(*, padding_side, **inputs):
        return policy.processor(padding_side="right", **inputs)

    stubborn.apply_chat_template = policy.processor.apply_chat_template
    questions = ["how many red shapes ?", "how many blue shapes plus red shapes ?"]
    with pytest.raises(InputError, match="prompt 0 is padded on the right"):
        encode_prompts(stubborn, policy.family, [row["image"] for row in rows[:2]], questions)


def forwards(policy, rows, **changes):
    """One step; how often the model ran, per (in train mode?, with a graph?)."""
    seen = Counter()
    policy.vlm.model.register_forward_pre_hook(lambda module, _: seen.update([(module.training, torch.is_grad_enabled())]))
    config = CPPOConfig(prompts_per_step=2, group_size=4, kl_weight=0.1, num_minibatches=2, advantage_gate=False, **changes)
    cppo_step(policy, torch.optim.SGD(policy.trainable, lr=1e-3), rows[:2], config, 0)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_but_the_checkpointed_forward_with_a_graph_runs_in_train_mode(rows, checkpointing):
    policy = load_policy("tiny", activation_checkpointing=checkpointing)
    seen = forwards(policy, rows, activation_checkpointing=checkpointing)
    assert set(seen) == {(False, False), (checkpointing, True)}  # transformers checkpoints in train mode only
    assert seen[False, False] >= 3 + 1  # reference, old log-probabilities, removing view; a token sampled
    assert seen[checkpointing, True] >= 2 * 3  # two minibatches, three views
    assert not any(module.training for module in policy.model.modules())


@pytest.mark.parametrize("lora", [LoraOptions(), None], ids=["adapters", "bare"])
def test_a_loaded_policy_is_in_eval_mode(lora, tmp_path):
    policy = load_policy("tiny", lora=lora)
    assert not any(module.training for module in policy.model.modules())
    if lora:
        again = load_policy("tiny", adapter=str(save_adapter(tmp_path / "adapter", policy)))
        assert not any(module.training for module in again.model.modules())


def test_checkpointing_covers_every_block():
    policy = load_policy("tiny", activation_checkpointing=True, quantize="none")
    blocks = [type(module).__name__ for module in policy.vlm.modules() if getattr(module, "gradient_checkpointing", False)]
    assert blocks.count("CLIPEncoderLayer") == 2 and blocks.count("LlamaDecoderLayer") == 3


def test_completion_padding_changes_no_logit(policy, rows):
    rollouts = roll(policy, rows)
    prompts = rollouts.prompts.take(rollouts.prompt_of_row)
    extra = torch.zeros(len(prompts), 6, dtype=torch.long)
    with torch.no_grad():
        longer = policy.score(
            prompts,
            torch.cat([rollouts.completion_ids, extra + policy.tokenizer.pad_token_id], dim=1),
            torch.cat([rollouts.completion_mask, extra.bool()], dim=1),
        )
    mask = rollouts.completion_mask
    assert_close(longer[:, :-6][mask], scores(policy, prompts, rollouts)[mask], atol=1e-5, rtol=1e-5)


def test_scoring_agrees_with_a_plain_forward_of_each_row_alone(policy, rows):
    rollouts = roll(policy, rows)
    together = scores(policy, rollouts.prompts.take(rollouts.prompt_of_row), rollouts)
    for i in range(3):
        row = rows[int(rollouts.prompt_of_row[i])]
        alone = policy.encode([row["image"]], [row["question"]]).inputs
        n = int(rollouts.completion_mask[i].sum())
        ids = torch.cat([alone["input_ids"], rollouts.completion_ids[i : i + 1, :n]], dim=1)
        with torch.no_grad():
            logits = policy.model(input_ids=ids, pixel_values=alone["pixel_values"], attention_mask=torch.ones_like(ids)).logits
        start = alone["input_ids"].shape[1]
        assert_close(together[i, :n], logits[0, start - 1 : start - 1 + n].float(), atol=1e-4, rtol=1e-4)


def test_the_temperature_divides_the_logits(policy, rows):
    rollouts = roll(policy, rows)
    args = (rollouts.prompts.take(rollouts.prompt_of_row), rollouts.completion_ids, rollouts.completion_mask)
    with torch.no_grad():
        assert_close(policy.score(*args, temperature=2.0) * 2, policy.score(*args))


def test_the_reference_is_the_model_without_adapters(rows):
    trained, bare = load_policy("tiny"), load_policy("tiny", lora=None)
    for parameter in trained.trainable:
        parameter.data += 0.05
    rollouts = roll(bare, rows)
    prompts = rollouts.prompts.take(rollouts.prompt_of_row)
    plain = scores(bare, prompts, rollouts)
    assert (scores(trained, prompts, rollouts) - plain).abs().max() > 0.1
    with trained.reference():
        assert_close(scores(trained, prompts, rollouts), plain)


def test_sampling_is_a_function_of_its_generator(policy, rows):
    first, again, other = roll(policy, rows), roll(policy, rows), roll(policy, rows, seed=1)
    assert first.texts == again.texts
    assert first.texts != other.texts


def test_sampled_frequencies_follow_the_scored_probabilities(policy, rows):
    """The first listed cell, 2000 samples of one prompt, against the probabilities that teacher forcing gives."""
    rollouts = roll(policy, rows[:1], group_size=2000, max_new_tokens=2)
    ids = rollouts.completion_ids
    start = policy.tokenizer.convert_tokens_to_ids("<think>")
    second = ids[ids[:, 0] == start, 1]
    with torch.no_grad():
        logits = policy.score(rollouts.prompts, ids[:1], rollouts.completion_mask[:1])
    probabilities = logits[0, 1].softmax(dim=-1)
    frequencies = torch.bincount(second, minlength=len(probabilities)) / len(second)
    assert_close(frequencies, probabilities, atol=0.04, rtol=0)


@pytest.mark.parametrize(
    "bad", [{"group_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"rows": []}]
)
def test_what_cannot_be_sampled_is_refused_in_one_sentence(policy, rows, bad):
    given = {"rows": rows[:1], "group_size": 2, "max_new_tokens": 4, "rng": torch.Generator()} | bad
    with pytest.raises(
        ValueError, match=r"^asked to sample \d rows, .*: expected 1 or more of each, and a temperature of 0 or"
    ):
        generate_rollouts(policy, **given)


def test_placeholders_and_padding_are_never_sampled(rows):
    policy = load_policy("tiny")
    image = policy.model.config.image_token_id
    policy.model.get_base_model().lm_head.weight.data[:, :] = 0  # every token equally likely
    rollouts = roll(policy, rows, group_size=16, max_new_tokens=32)
    sampled = set(rollouts.completion_ids[rollouts.completion_mask].tolist())
    assert len(sampled) > 30
    assert not sampled & {image, policy.tokenizer.pad_token_id}


def test_greedy_decoding_repeats_itself_whatever_the_seed(policy, rows):
    assert roll(policy, rows, temperature=0).texts == roll(policy, rows, seed=5, temperature=0).texts


MASKS = [
    # ids (9 = end, 0 = pad)      expected                          why
    ([4, 5, 9, 0, 0], [9], [1, 1, 1, 0, 0]),  # the end counts, padding does not
    ([4, 5, 9, 9, 9], [9], [1, 1, 1, 0, 0]),  # pad = end: only the first is an action
    ([9, 0, 0, 0, 0], [9], [1, 0, 0, 0, 0]),  # an empty completion is one action
    ([4, 5, 6, 7, 8], [9], [1, 1, 1, 1, 1]),  # cut before its end
    ([4, 8, 5, 9, 0], [8, 9], [1, 1, 0, 0, 0]),  # two kinds of end
]


@pytest.mark.parametrize(("ids", "ends", "expected"), MASKS)
def test_completion_mask(ids, ends, expected):
    assert completion_mask(torch.tensor([ids]), ends).int().tolist() == [expected]


def test_dtype_follows_the_device(monkeypatch):
    gpu = torch.device("cuda")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_dtype("auto", gpu) == torch.float16  # T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose_dtype("auto", gpu) == torch.bfloat16
    assert choose_dtype("float32", gpu) == torch.float32


def test_a_gpu_is_named_with_its_number(monkeypatch):
    """Under torchrun, accelerate refuses a 4-bit model on a device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device is 'cuda', but torch sees no GPU: use --device cpu or install a CUDA build"):
        choose_device("cuda")


def test_4_bit_weights_cost_little(rows):
    """NF4 and float32 policies give nearby distributions: what is trained is the model that was loaded."""
    quantised, plain = load_policy("tiny", lora=None), load_policy("tiny", quantize="none", lora=None)
    rollouts = roll(plain, rows)
    prompts = rollouts.prompts.take(rollouts.prompt_of_row)
    a, b = (scores(p, prompts, rollouts).softmax(dim=-1)[rollouts.completion_mask] for p in (quantised, plain))
    assert np.median((a - b).abs().sum(dim=-1).numpy()) < 0.15


NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]  # QLoRA paper, appendix E
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def test_the_4_bit_weights_are_nf4_and_their_scales_are_quantised_again(policy):
    states = [m.weight.quant_state for m in policy.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(states) == 3 * 7
    for state in states:
        assert_close(state.code, torch.tensor(NF4), atol=1e-6, rtol=0)
        assert state.absmax.dtype == torch.uint8  # 8 bits per block's scale: the second quantisation
        assert state.state2.absmax.dtype == torch.float32


def with_generation_config(folder, **changes):
    """A copy of the tiny VLM that ships other generation settings."""
    shutil.copytree(data_folder() / "tiny-vlm", folder)
    shipped = folder / "generation_config.json"
    shipped.write_text(json.dumps(json.loads(shipped.read_text()) | changes))
    return str(folder)


HABITS = {
    "do_sample": True,
    "top_k": 1,
    "top_p": 0.1,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 20,
}


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_checkpoints_generation_habits_are_dropped(policy, rows, tmp_path, temperature):
    habitual = load_policy(with_generation_config(tmp_path / "model", **HABITS), lora=LoraOptions(seed=3))
    assert roll(habitual, rows, temperature=temperature).texts == roll(policy, rows, temperature=temperature).texts


def test_every_end_that_a_checkpoint_names_ends_a_completion(policy, rows, tmp_path):
    usual, another = policy.tokenizer.eos_token_id, policy.tokenizer.convert_tokens_to_ids(";")
    two_ends = load_policy(with_generation_config(tmp_path / "model", eos_token_id=[usual, another]))
    rollouts = roll(two_ends, rows)
    for ids, mask, finished in zip(rollouts.completion_ids, rollouts.completion_mask, rollouts.finished, strict=True):
        assert finished and ids[mask].tolist().index(another) == mask.sum() - 1
    assert two_ends.eos_ids == [usual, another]


def test_without_an_end_of_its_own_a_checkpoint_ends_as_its_tokenizer_says(policy, tmp_path):
    endless = load_policy(with_generation_config(tmp_path / "model", eos_token_id=None), lora=None)
    assert endless.eos_ids == [policy.tokenizer.eos_token_id]


def test_a_model_without_any_end_is_refused(tmp_path):
    folder = Path(with_generation_config(tmp_path / "model", eos_token_id=None))
    named = folder / "tokenizer_config.json"
    named.write_text(json.dumps({name: value for name, value in json.loads(named.read_text()).items() if name != "eos_token"}))
    with pytest.raises(
        InputError, match=r"^model '.*model' names no token that ends a completion: give its tokenizer an eos_tok"
    ):
        load_policy(str(folder))


def test_sampling_leaves_no_token_out(tmp_path, rows):
    """400 tokens, nearly as likely as each other, 8000 draws: a top-k (50 by default) or top-p would leave some out."""
    fields = {"model_type": "idefics3", "text_config": TEXT | {"vocab_size": 400}, "vision_config": VISION["idefics3"]}
    policy = load_policy(str(random_model(fields, tmp_path)), lora=None, quantize="none")
    policy.vlm.lm_head.weight.data *= 0.1
    rollouts = roll(policy, rows[:1], group_size=500, max_new_tokens=16)
    sampled = set(rollouts.completion_ids[rollouts.completion_mask].tolist())
    assert sampled == set(range(400)) - set(policy.forbidden_ids)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logits_scaling", "logit_scale"])
def test_a_model_that_caps_or_scales_its_logits_is_refused(tmp_path, name):
    copy = shutil.copytree(data_folder() / "tiny-vlm", tmp_path / "model")
    fields = json.loads((copy / "config.json").read_text())
    for part, value in ((fields, 30.0), (fields["text_config"], 0.5)):
        (copy / "config.json").write_text(json.dumps(fields))
        load_policy(str(copy), lora=None)
        part[name] = value
        (copy / "config.json").write_text(json.dumps(fields))
        said = f"{name} of {str(copy)!r} is {value}, expected none: logits are the head's, take another model"
        with pytest.raises(InputError, match=re.escape(said)):
            load_policy(str(copy), lora=None)
        part[name] = 1


def spoiled(what):
    """A merge that went wrong: the adapter forgotten, or a weight that is no number."""

    def merge(policy):
        merged = load_policy("tiny", quantize="none", lora=None, dtype="bfloat16").model
        if what == "no number":
            merged.lm_head.weight.data[:] = torch.nan
        return merged

    return merge


@pytest.mark.parametrize("what", ["adapter forgotten", "no number"])
def test_export_refuses_a_merged_model_that_computes_something_else(tmp_path, monkeypatch, what):
    policy = load_policy("tiny")
    for parameter in policy.trainable:
        parameter.data += 0.05
    adapter = save_adapter(tmp_path / "adapter", policy)
    monkeypatch.setattr("cppo_ref.vlm.export.merged_model", spoiled(what))
    with pytest.raises(ArithmeticError, match=r"merged model differs by .* nats per token, expected at most 0\.01"):
        export_merged("tiny", str(adapter), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing was kept"
