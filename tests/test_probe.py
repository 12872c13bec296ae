"""The probe: what it prints, each thing that stands in the way of learning, and each failure of the self-test, provoked."""

import re
from dataclasses import replace

import pytest
import torch
from policies import nudge
from tiny_families import make_family

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import load_rows, split_rows
from cppo_ref.examples.views import blanked
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.runs import probe as probing
from cppo_ref.runs.probe import check_agreement, check_gradients, check_image_matters, run_probe, verdicts
from cppo_ref.training import train
from cppo_ref.vlm.decoding import Decoder
from cppo_ref.vlm.policy import load_policy, policy_for

CONFIG = CPPOConfig(group_size=4, micro_batch_size=8)


@pytest.fixture(scope="module")
def policy():
    return policy_for(CONFIG)


@pytest.fixture(scope="module")
def healthy(policy):
    return run_probe(policy, load_rows("shapes"), CONFIG, 8)


def roll(policy, rows, **options):
    rng = torch.Generator().manual_seed(0)
    return generate_rollouts(policy, rows, **{"group_size": 2, "max_new_tokens": 10, "rng": rng, **options})


def test_the_courses_model_can_learn(healthy):
    assert verdicts(healthy) == []
    assert healthy.completions == 32 and healthy.silent == []
    assert 0.3 < healthy.right < 0.7 and healthy.formatted > 0.9 and healthy.dead < 0.5 and healthy.changed > 0.5
    assert healthy.disagreement < 1e-5 and healthy.peak is not None and healthy.peak > 1e8
    assert "how many" in healthy.prompts and "both end in the same" in healthy.prompts


def test_it_leaves_no_gradient_and_draws_from_no_global_generator(policy):
    before = torch.get_rng_state()
    run_probe(policy, load_rows("shapes"), CONFIG, 2)
    assert all(parameter.grad is None for parameter in policy.trainable)
    assert torch.equal(torch.get_rng_state(), before)


def rows_of(monkeypatch, rows):
    monkeypatch.setattr(probing, "step_rows", lambda *_: rows)


def half_right(row):
    """Its answer is made wrong, unless it is 2."""
    return row if row["answer"] == "2" else {**row, "answer": "99"}


def almost_blank(row):
    """Its image is blank but for one pixel that is a little brighter and says nothing."""
    row = blanked(row)
    row["image"].putpixel((0, 0), tuple(channel + 1 for channel in row["image"].getpixel((0, 0))))
    return row


OBSTACLES = {  # which rows, which settings, what is said
    "all wrong": (lambda row: {**row, "answer": "99"}, {}, "no answer is right"),
    "all right": (lambda row: row, {"temperature": 1e-3}, "every answer is right"),
    "dead groups": (half_right, {"temperature": 1e-3}, "teach nothing"),
    "all cut, no format": (lambda row: row, {"max_new_tokens": 3}, "every completion was cut"),
    "no format": (lambda row: row, {"max_new_tokens": 3}, "no completion has the format"),
    "does not look": (almost_blank, {"temperature": 1e-3}, "no answer changes when the image is blank"),
}


@pytest.mark.parametrize(("change", "settings", "said"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_stands_in_the_way_is_named(policy, monkeypatch, change, settings, said):
    rows_of(monkeypatch, [change(row) for row in split_rows("test", count=8)])
    found = verdicts(run_probe(policy, load_rows("shapes"), replace(CONFIG, **settings), 8))
    assert any(said in text for text in found), found


def test_a_blank_image_is_one_constant_picture():
    for row in split_rows("test", count=3):
        assert len(set(blanked(row)["image"].get_flattened_data())) == 1


def test_an_image_that_does_not_reach_the_logits_is_found(policy, monkeypatch):
    row = split_rows("test", count=1)[0]
    seen, blind = (roll(policy, [r], group_size=1, temperature=0) for r in (row, blanked(row)))
    check_image_matters(policy, seen, blind)
    said = "^a blank image changes no logit: images do not reach the language model, or are blank already$"
    with pytest.raises(InputError, match=said):
        check_image_matters(policy, blind, roll(policy, [blanked(row)], group_size=1, temperature=0))


def test_a_policy_that_samples_otherwise_than_it_scores_is_found(policy, monkeypatch):
    rows = split_rows("test", count=2)
    assert check_agreement(policy, roll(policy, rows), CONFIG) < 1e-5
    append = Decoder.append

    def late(self, ids):
        self.position = self.position + 1  # a position too far
        append(self, ids)

    monkeypatch.setattr(Decoder, "append", late)
    said = r"sampling and scoring give entropies \d\.\d+ nats apart, expected at most 0\.001: "
    said += "with this model and these library versions the policy that samples is not the one that learns$"
    with pytest.raises(InputError, match=said):
        check_agreement(policy, roll(policy, rows), CONFIG)


def test_adapters_without_a_gradient_are_found(policy, monkeypatch):
    rollouts = roll(policy, split_rows("test", count=2))
    projector = policy.vlm.get_submodule(policy.family.projector)
    forward = projector.forward
    monkeypatch.setattr(projector, "forward", lambda x: forward(x).detach())
    said = "no adapter in model.vision_tower gets a gradient: give --lora_scope without it, or another model$"
    with pytest.raises(InputError, match=said):
        check_gradients(policy, rollouts, CONFIG)


def test_layers_that_a_model_never_reads_are_named(tmp_path):
    """LLaVA-1.5 reads its vision tower before the last layer; the course's reads the last."""
    import json
    import shutil

    from cppo_ref.worlds.splits import data_folder

    copy = shutil.copytree(data_folder() / "tiny-vlm", tmp_path / "model")
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"vision_feature_layer": -2}))
    policy = nudge(load_policy(str(copy)))
    silent = check_gradients(policy, roll(policy, split_rows("test", count=2)), CONFIG)
    assert len(silent) == 6 and all(".layers.1." in name and "vision_tower" in name for name in silent)


def test_a_profile_is_probed_before_it_trains(tmp_path, capsys):
    """The 3B profile on a tiny random Qwen2.5-VL: every line that the probe prints, before step 0."""
    folder = make_family("qwen2_5_vl", tmp_path / "model")
    options = f"--profile 12gb-3b --model {folder} --max_new_tokens 19 --dtype float32 --probe_rows 2"
    assert main(["probe", *options.split()]) == 0
    printed = capsys.readouterr().out
    expected = [
        r"training prompt: \d+ tokens, \d+ of them images; 48×48",
        r"evaluation prompt: \d+ tokens, \d+ of them images; 48×48",
        r"both end in the same \d+ tokens",
        r"16 completions: \d+% right, \d+% in the format; \d+% of the groups earn the same reward",
        r"length: \d+ tokens on average, \d+% finished, \d+% cut",
        r"does it look\? \d+% of the likeliest answers change when the image is blank",
        r"ΔH: -?\d\.\d+, -?\d\.\d+ and -?\d\.\d+ nats",
        r"self-test: the image reaches the logits; sampling and scoring agree to .* nats; gradients flow",
        r"adapted layers without a gradient: none",
        r"measured: .* s to sample .*, .* s for a micro-batch forward and backward .*, peak [\d.]+ GB",
        r"→ no answer is right",
    ]
    for pattern in expected:
        assert re.search(pattern, printed), pattern
    run = f"{options} --steps 1 --prompts_per_step 1 --group_size 2 --output {tmp_path / 'run'}"
    assert main(["train", *run.split()]) == 0
    printed = capsys.readouterr().out
    order = [printed.index(text) for text in ("estimated memory", "100 steps", "training prompt", "→ no answer is right")]
    assert order == sorted(order)


def test_a_run_that_was_probed_is_the_run_that_was_not(tmp_path):
    shared = CPPOConfig(steps=1, prompts_per_step=2, group_size=2, eval_rows=0, output=str(tmp_path / "a"))
    plain = train(shared, progress=False)
    probed = train(replace(shared, probe_rows=2, output=str(tmp_path / "b")), progress=False)
    assert (plain.adapter / "adapter_model.safetensors").read_bytes() == (
        probed.adapter / "adapter_model.safetensors"
    ).read_bytes()
