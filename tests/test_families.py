"""Every family, as a tiny random model: encoding, padding, one CPPO step, the gate, and save → reload → merge."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from PIL import Image
from policies import nudge
from tiny_families import TEXT, TYPES, VISION, make_family, random_model
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.runs.checkpoints import save_adapter
from cppo_ref.step import cppo_step, loss_terms
from cppo_ref.vlm.adapters import LoraOptions
from cppo_ref.vlm.export import export_merged
from cppo_ref.vlm.families import image_size
from cppo_ref.vlm.policy import load_policy
from cppo_ref.vlm.processors import load_processor
from cppo_ref.vlm.quantization import read_config

QUESTIONS = ["how many red shapes ?", "how many blue shapes plus red shapes ?"]  # prompts of two lengths
ADAPTED = {  # (vision, language) layers with adapters, counted in the configs by hand: blocks × linear layers of a block
    "llava": (2 * 6, 3 * 7),
    "internvl": (2 * 6, 2 * 7),
    "qwen2_vl": (2 * 4, 2 * 7),
    "qwen2_5_vl": (2 * 5, 2 * 7),
    "qwen3_vl": (2 * 4, 2 * 7),
    "qwen3_5": (2 * 4, (5 + 3) + 7),  # a layer of linear attention, one of full attention
    "idefics3": (2 * 6, 2 * 7),
    "smolvlm": (2 * 6, 2 * 7),
}


@pytest.fixture(scope="module", params=TYPES)
def folder(request, tmp_path_factory):
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(str(folder), lora=LoraOptions(rank=4, alpha=8))


@pytest.fixture(scope="module")
def rows():
    first, second = split_rows("test", count=2)
    return [{**first, "question": QUESTIONS[0]}, {**second, "question": QUESTIONS[1]}]


def roll(policy, rows, group_size=3):
    return generate_rollouts(policy, rows, group_size=group_size, max_new_tokens=10, rng=torch.Generator().manual_seed(0))


def config(folder, **changes):
    return CPPOConfig(model=str(folder), prompts_per_step=2, group_size=3, max_new_tokens=10, lora_rank=4, **changes)


def adapted(policy, part):
    return [n for n, p in policy.model.named_parameters() if "lora_A" in n and part.removeprefix("model.") in n]


def test_vision_projector_and_head_keep_their_precision_and_the_linear_layers_get_adapters(policy):
    family, kind = policy.family, policy.vlm.config.model_type
    quantised = [name for name, module in policy.vlm.named_modules() if isinstance(module, Linear4bit)]
    vision, language = ADAPTED[kind]
    assert len(quantised) == language
    assert all(name.startswith(family.language) for name in quantised)
    assert len(adapted(policy, family.vision)) == vision
    assert len(adapted(policy, family.language)) == language
    assert len(policy.trainable) == 2 * (vision + language)  # A and B


@pytest.mark.parametrize(("scope", "part"), [("language", "language"), ("vision", "vision")])
def test_adapters_on_one_part_only(folder, scope, part):
    policy = load_policy(str(folder), lora=LoraOptions(rank=2, scope=scope))
    kind = policy.vlm.config.model_type
    assert len(policy.trainable) == 2 * ADAPTED[kind][1 if scope == "language" else 0]
    assert len(adapted(policy, getattr(policy.family, part))) == len(policy.trainable) / 2


def logits_alone(policy, images, question, ids):
    """The logits [n, V] of one completion behind its own prompt, by the model's own forward pass: nothing is shared."""
    inputs = dict(policy.encode([images], [question]).inputs)
    start = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    inputs |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (whole == policy.vlm.config.image_token_id).long()  # from its definition
    return policy.model(**inputs, use_cache=False).logits[0, start - 1 : start - 1 + len(ids)].float()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_completions_that_share_a_prompt_have_the_values_and_gradients_of_rows_alone(folder, rows, checkpointing):
    """In NF4, adapters in vision tower and language model, prompts of two lengths, one and two images, rows out of order."""
    policy = nudge(load_policy(str(folder), lora=LoraOptions(rank=4), activation_checkpointing=checkpointing))
    images = [[rows[0]["image"]], [rows[1]["image"], rows[0]["image"]]]
    words = policy.tokenizer("<think> red blue none red green yellow none")["input_ids"]
    ids = torch.tensor([words] * 6).roll(1, 0) + torch.arange(6)[:, None] % 2
    lengths = torch.tensor([3, 8, 1, 5, 2, 7])
    mask = torch.arange(len(words)) < lengths[:, None]
    prompt = torch.tensor([1, 0, 0, 1, 1, 0])
    weights = torch.randn(6, len(words), policy.vocabulary, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    with policy.learning():
        shared = policy.score(policy.encode(images, QUESTIONS).take(prompt), ids, mask)
    got = torch.autograd.grad((shared * weights).sum(), policy.trainable, allow_unused=True)
    loss = 0.0
    for i, p in enumerate(prompt.tolist()):
        alone = logits_alone(policy, images[p], QUESTIONS[p], ids[i, : lengths[i]])
        assert_close(shared[i, : lengths[i]], alone, atol=1e-5, rtol=1e-5)
        loss = loss + (alone * weights[i, : lengths[i]]).sum()
    want = torch.autograd.grad(loss, policy.trainable, allow_unused=True)
    largest = max(g.abs().max().item() for g in want if g is not None)
    assert largest > 1e-2 and not shared[~mask].any()
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)  # LLaVA's last vision layer has no gradient
        if a is not None:
            assert_close(a, b, atol=1e-5 * largest, rtol=1e-4)


WINDOWS = {
    "qwen2_5_vl": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},  # says so for each layer
    "internvl": {"model_type": "mistral", "sliding_window": 4},  # says so for all of them
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_layers_that_see_the_last_tokens_only_see_those_of_their_own_completion(kind, rows, tmp_path):
    fields = {"model_type": kind, "text_config": TEXT | WINDOWS[kind], "vision_config": VISION[kind]}
    policy = load_policy(str(random_model(fields, tmp_path)), quantize="none")
    ids = torch.tensor([policy.tokenizer("<think> red blue none red green yellow none")["input_ids"]] * 3)
    ids += torch.arange(3)[:, None] % 2
    prompt, images = torch.tensor([1, 0, 1]), [[row["image"]] for row in rows]
    with torch.no_grad():
        scored = policy.score(policy.encode(images, QUESTIONS).take(prompt), ids, torch.ones_like(ids, dtype=torch.bool))
        for i, p in enumerate(prompt.tolist()):
            assert_close(scored[i], logits_alone(policy, images[p], QUESTIONS[p], ids[i]), atol=1e-5, rtol=1e-5)
    greedy = generate_rollouts(policy, rows, group_size=2, max_new_tokens=10, temperature=0, rng=torch.Generator())
    with torch.no_grad():
        prompts = greedy.prompts.take(greedy.prompt_of_row)
        logits = policy.score(prompts, greedy.completion_ids, greedy.completion_mask)
    logits[..., policy.forbidden_ids] = -torch.inf
    assert torch.equal(logits.argmax(dim=-1)[greedy.completion_mask], greedy.completion_ids[greedy.completion_mask])


def test_sampled_tokens_are_the_scored_ones(policy, rows):
    """Greedy tokens from the cache are those of one teacher-forced forward and of transformers' generate; so is the entropy."""
    rollouts = generate_rollouts(
        policy, rows, group_size=1, max_new_tokens=10, temperature=0, rng=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        logits = policy.score(rollouts.prompts, rollouts.completion_ids, rollouts.completion_mask)
        entropy = torch.distributions.Categorical(logits=logits).entropy() * rollouts.completion_mask
        options = {"max_new_tokens": 10, "suppress_tokens": policy.forbidden_ids, "do_sample": False}
        theirs = policy.model.generate(**rollouts.prompts.inputs, **options)[:, rollouts.prompts.inputs["input_ids"].shape[1] :]
    assert_close(rollouts.entropy, entropy, atol=1e-5, rtol=1e-4)
    assert torch.equal(theirs, rollouts.completion_ids)
    logits[..., policy.forbidden_ids] = -torch.inf
    mask = rollouts.completion_mask
    assert torch.equal(logits.argmax(dim=-1)[mask], rollouts.completion_ids[mask])
    assert not torch.isin(rollouts.completion_ids[mask], torch.tensor(policy.forbidden_ids)).any()


def test_several_images_in_a_row(policy):
    images = [Image.new("RGB", (48, 48), color) for color in ("red", "blue", "green")]
    prompts = policy.encode([images[:2], [images[2]]], QUESTIONS)
    ids = torch.tensor([policy.tokenizer("<think> red blue")["input_ids"]] * 2)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        together = policy.score(prompts, ids, mask)
        alone = [
            policy.score(policy.encode([i], [q]), ids[:1], mask[:1])
            for i, q in zip([images[:2], images[2]], QUESTIONS, strict=True)
        ]
        assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
        swapped = policy.score(prompts.take(torch.tensor([1, 0, 0])), ids[[0, 0, 0]], mask[[0, 0, 0]])
        assert_close(swapped, together[[1, 0, 0]], atol=1e-4, rtol=1e-4)
        other = policy.score(policy.encode([[images[1], images[0]]], QUESTIONS[:1]), ids[:1], mask[:1])
    assert (other - alone[0]).abs().max() > 1e-6  # the order of images matters


def test_the_tokens_of_an_image_are_as_many_as_the_memory_estimate_counts(policy):
    """A picture twice as wide as high, which InternVL and SmolVLM would cut in tiles if they were let."""
    config = policy.vlm.config
    prompts = policy.encode([Image.new("RGB", (448, 224), "red")], QUESTIONS[:1])
    patches, tokens = image_size(config, 448 * 224)
    assert (prompts.inputs["input_ids"] == config.image_token_id).sum() == tokens
    layers = policy.vlm.get_submodule(policy.family.vision).modules()
    of_a_patch = next(layer for layer in layers if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d)).weight[0].numel()
    assert prompts.inputs["pixel_values"].numel() == patches * of_a_patch


def test_a_row_without_an_image_is_refused(policy):
    image = Image.new("RGB", (48, 48), "red")
    with pytest.raises(InputError, match=r"^row 1 has no image, expected one or more: give it one, or leave the row out$"):
        policy.encode([image, [], [image]], ["?"] * 3)


def test_a_step_trains_vision_and_language(folder, rows):
    policy = load_policy(str(folder), lora=LoraOptions(rank=4))
    before = [p.detach().clone() for p in policy.trainable]
    settings = config(folder, advantage_gate=False)  # random models earn nothing: every row looks
    metrics, batch = cppo_step(policy, torch.optim.AdamW(policy.trainable, lr=1e-2, weight_decay=0), rows, settings, 0)
    assert metrics.perception_tokens > 0 and metrics.cpl > 0
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    moved = [n for n, p, old in zip(names, policy.trainable, before, strict=True) if not torch.equal(p, old)]
    # B starts at zero, so A has no gradient in the first step
    assert all("lora_B" in n for n in moved)
    assert any(policy.family.vision.removeprefix("model.") in n for n in moved)
    assert any(policy.family.language.removeprefix("model.") in n for n in moved)
    assert batch.selected is not None and not batch.selected[~batch.rollouts.completion_mask].any()


def gradients(folder, rows, monkeypatch, settings):
    """Gradients of one step whose rewards are 1 for the first completion of each prompt and 0 for the others."""
    policy = nudge(load_policy(str(folder), lora=LoraOptions(rank=4)))
    paid = iter([1.0, 0.0, 0.0] * 2)
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: next(paid))
    _, batch = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, settings, 0)
    return [p.grad for p in policy.trainable], batch


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch_size": 1}, {"activation_checkpointing": True}, {"rollout_batch_size": 6}],
    ids=lambda c: next(iter(c)),
)
def test_what_saves_memory_changes_no_gradient(folder, rows, monkeypatch, changes):
    settings = config(folder, cpl_weight=0.5, max_grad_norm=1e9)
    plain, _ = gradients(folder, rows, monkeypatch, settings)
    lean, _ = gradients(folder, rows, monkeypatch, replace(settings, **changes))
    largest = max(g.abs().max().item() for g in plain)
    assert largest > 0
    for a, b in zip(plain, lean, strict=True):  # float32 sums in another order, whose parts may cancel
        assert_close(a, b, atol=1e-5 * largest, rtol=1e-4)


def test_the_gate_is_exact(folder, rows, monkeypatch):
    """CPL and its gradient against a plain one that scores all views of all rows and multiplies by the gate afterwards."""
    settings = config(folder, removing_strength=4.0)
    _, batch = gradients(folder, rows, monkeypatch, settings)
    assert batch.gate.tolist() == [True, False, False] * 2
    policy = nudge(load_policy(str(folder), lora=LoraOptions(rank=4)))
    rollouts, mask = batch.rollouts, batch.rollouts.completion_mask
    batch = replace(batch, selected=mask & batch.gate[:, None])  # a random model hardly looks: take all its gated tokens
    cpl_weights = batch.selected / batch.selected.sum()
    gated = loss_terms(policy, batch, torch.arange(6), mask / mask.sum(), cpl_weights, settings)["cpl"]
    views = (batch.prompts, *batch.views)
    logits = [policy.score(view, rollouts.completion_ids, mask).log_softmax(-1) for view in views]
    kls = [(logits[0].detach().exp() * (logits[0].detach() - view)).sum(dim=-1) for view in logits[1:]]
    plain = (torch.nn.functional.softplus((kls[0] - kls[1]) / settings.tau) * cpl_weights).sum()
    assert_close(gated, plain, atol=1e-6, rtol=1e-5)
    pairs = zip(*(torch.autograd.grad(loss, policy.trainable, allow_unused=True) for loss in (gated, plain)), strict=True)
    for got, want in pairs:
        assert_close(got, want, atol=1e-6, rtol=1e-3)


def test_save_reload_and_merge(folder, rows, tmp_path):
    policy = nudge(load_policy(str(folder), lora=LoraOptions(rank=4)))
    rollouts = roll(policy, rows, group_size=2)
    args = rollouts.prompts.take(rollouts.prompt_of_row), rollouts.completion_ids, rollouts.completion_mask
    adapter = save_adapter(tmp_path / "adapter", policy)
    again = load_policy(str(folder), adapter=str(adapter))
    with torch.no_grad():
        assert_close(again.score(*args), policy.score(*args))
    report = export_merged(str(folder), str(adapter), tmp_path / "merged", "float16")
    assert "KL to the QLoRA policy" in report  # it measured the merged model and found it close
    merged = load_policy(str(tmp_path / "merged"), quantize="none", lora=None)
    saved = json.loads((tmp_path / "merged" / "processor_config.json").read_text())
    assert hasattr(transformers, saved["processor_class"]), "a class that only this package has"
    assert not any("lora" in name for name, _ in merged.model.named_parameters())


def test_a_template_in_a_file_that_tokenizers_do_not_read_is_found(folder, tmp_path):
    """chat_template.json, as Qwen-VL and SmolVLM have it."""
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }} !"}))
    processor = load_processor(str(copy), read_config(str(copy)))
    assert processor.apply_chat_template([{"role": "user", "content": "how many"}]) == "how many !"
