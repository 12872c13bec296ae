"""Whole runs: resume bit for bit, survive SIGKILL, keep the right checkpoints, export."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cppo_ref import step as algorithm
from cppo_ref import training
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.runs.checkpoints import (
    best_checkpoint,
    checkpoints,
    drop_later,
    latest_checkpoint,
    read_state,
    restore_checkpoint,
    save_checkpoint,
)
from cppo_ref.runs.folder import RunFolder
from cppo_ref.runs.stopping import CollapseError, Stopped
from cppo_ref.step import NonFiniteError, cppo_step
from cppo_ref.training import train
from cppo_ref.vlm.policy import load_policy

SMALL = {"prompts_per_step": 2, "group_size": 4, "eval_rows": 0, "save_every": 2, "cpl_weight": 0.1, "warmup_steps": 3}


def run(folder, steps, resume=False, **changes):
    config = CPPOConfig.from_dict({**SMALL, "output": str(folder), "steps": steps, **changes})
    return train(config, resume=resume, progress=False)


def adapter_bytes(result):
    return (result.adapter / "adapter_model.safetensors").read_bytes()


def without_seconds(history):
    return [{key: value for key, value in step.items() if not key.startswith("seconds")} for step in history]


def test_two_steps_and_two_more_are_four_steps_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "halves", 2)
    halves = run(tmp_path / "halves", 4, resume=True)
    assert adapter_bytes(halves) == adapter_bytes(whole)
    assert without_seconds(halves.history) == without_seconds(whole.history)
    for name in ("completions.jsonl",):
        assert (halves.output / name).read_text() == (whole.output / name).read_text()
    assert sum(step["perturbed_rows"] for step in whole.history) > 0
    with pytest.raises(InputError, match=r"run '.*halves' has done 4 steps, more than 3: raise --steps"):
        run(tmp_path / "halves", 3, resume=True)


def test_a_killed_run_resumes_to_the_same_adapter(tmp_path):
    whole = run(tmp_path / "whole", 5, save_every=1)
    options = [
        f"--{key}={value}" for key, value in {**SMALL, "save_every": 1, "steps": 5, "output": tmp_path / "killed"}.items()
    ]
    command = [sys.executable, "-m", "cppo_ref", "train", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed = run(tmp_path / "killed", 5, resume=True, save_every=1)
    assert adapter_bytes(killed) == adapter_bytes(whole)


def test_a_log_line_that_was_cut_is_written_again(tmp_path):
    result = run(tmp_path / "a", 2)
    with (result.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rewa')
    resumed = run(tmp_path / "a", 3, resume=True)
    steps = [json.loads(line)["step"] for line in (resumed.output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]


def test_steps_after_the_checkpoint_are_logged_once(tmp_path):
    """Logs of steps 0 to 2, a checkpoint after step 1: the resumed run does step 2 again."""
    result = run(tmp_path / "a", 3)
    shutil.rmtree(result.output / "checkpoints" / "step-000003")
    resumed = run(tmp_path / "a", 4, resume=True)
    logged = {
        name: [json.loads(line)["step"] for line in (resumed.output / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "completions.jsonl")
    }
    assert logged["metrics.jsonl"] == [step["step"] for step in resumed.history] == [0, 1, 2, 3]
    assert logged["completions.jsonl"] == [step for step in range(4) for _ in range(8)]
    third = CPPOConfig().learning_rate / 3  # a warm-up of three steps
    assert [step["learning_rate"] for step in resumed.history] == pytest.approx([third, 2 * third, 3 * third, 3 * third])


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    policy = load_policy("tiny")
    optimizer = torch.optim.AdamW(policy.trainable)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        save_checkpoint(tmp_path, step, policy, optimizer, score, keep=2)
    assert [read_state(path)["step"] for path in checkpoints(tmp_path)] == [2, 4, 5]
    assert read_state(best_checkpoint(tmp_path))["score"] == 0.9
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_non_finite_loss_saves_what_is_good_first(tmp_path, monkeypatch):

    real, calls = algorithm.clipped_surrogate, []

    def broken(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) * (float("nan") if len(calls) > 1 else 1.0)

    monkeypatch.setattr(algorithm, "clipped_surrogate", broken)
    with pytest.raises(ArithmeticError, match=r"step 1: loss is nan.*last good state is in"):
        run(tmp_path / "a", 4)
    monkeypatch.undo()
    resumed = run(tmp_path / "a", 4, resume=True)
    assert adapter_bytes(resumed) == adapter_bytes(run(tmp_path / "b", 4))


def test_a_failure_right_after_a_checkpoint_leaves_it_as_it_is(tmp_path, monkeypatch):
    """Its validation score stays, and with several updates a step its clean state."""

    def fails_at_2(policy, optimizer, rows, config, step, **options):
        if step == 2:
            policy.trainable[0].data += 1.0  # as after the first of two updates
            raise NonFiniteError("loss is nan")
        return cppo_step(policy, optimizer, rows, config, step, **options)

    monkeypatch.setattr("cppo_ref.training.cppo_step", fails_at_2)
    monkeypatch.setattr("cppo_ref.training.validate", lambda policy, config: 0.75)
    with pytest.raises(NonFiniteError, match="step-000002"):
        run(tmp_path / "a", 4)
    monkeypatch.undo()
    assert best_checkpoint(tmp_path / "a") == latest_checkpoint(tmp_path / "a")
    resumed, whole = run(tmp_path / "a", 4, resume=True), run(tmp_path / "b", 4)
    assert adapter_bytes(resumed) == adapter_bytes(whole)


@pytest.mark.parametrize(("owner", "error"), [("cppo_step", RuntimeError), ("step_rows", InputError)])
def test_whatever_ends_a_run_between_two_checkpoints_costs_no_step(owner, error, tmp_path, monkeypatch, capsys):
    real, calls = getattr(training, owner), []

    def fails(*args, **options):
        calls.append(1)
        if len(calls) == 3 + (owner == "step_rows"):  # which is called before the first step as well
            raise error("the drive is gone")
        return real(*args, **options)

    monkeypatch.setattr(training, owner, fails)
    with pytest.raises(error, match="the drive is gone"):
        run(tmp_path / "a", 3, save_every=100)
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["step-000002"]
    assert "step 2 failed; the last good state is in" in capsys.readouterr().out


def test_a_request_after_the_last_step_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "save_adapter", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match="stopped at once: what was saved before is whole"):
        run(tmp_path / "a", 1)
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["step-000001"]


def test_a_collapsed_policy_ends_the_run_and_the_way_back_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "collapsed", lambda history, done: done == 2)
    said = r"step 1: no reward for 20 steps, the policy has collapsed; rewards were best \(0\.\d\d\) before .*step-000001"
    said += r".*: go on from there with `.* --checkpoint step-000001 --learning_rate 0\.0003`"
    with pytest.raises(CollapseError, match=said):
        run(tmp_path / "a", 3, save_every=1)
    folder = RunFolder(tmp_path / "a", CPPOConfig())
    (tmp_path / "a" / "checkpoints" / "step-000001" / "optimizer.pt").write_bytes(b"torn")
    assert folder.way_back() == "start again with a lower learning rate"


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    said = r"no whole checkpoint to go on from: '.*step-000002' is damaged \(manifest.json is absent .*\); put back a copy or"
    with pytest.raises(InputError, match=said):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^checkpoint 'step-000003' is not in '.*checkpoints': there are step-000002$"):
        latest_checkpoint(tmp_path, "step-000003")


def test_checkpoints_without_their_config_are_not_gone_on_from(tmp_path):
    run(tmp_path / "a", 2)
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints and no config\.json: copy it back from one of them"):
        run(tmp_path / "a", 2)


def test_a_checkpoint_is_due_after_minutes_in_any_case(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 700))  # seconds: a step takes more than ten minutes
    monkeypatch.setattr("cppo_ref.training.time.monotonic", lambda: next(clock))
    run(tmp_path / "a", 3, save_every=100, save_minutes=10, keep_checkpoints=9)
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["step-000001", "step-000002", "step-000003"]


def test_two_runs_with_one_seed_are_the_same_and_with_another_are_not(tmp_path):
    first, again, other = run(tmp_path / "a", 1), run(tmp_path / "b", 1), run(tmp_path / "c", 1, seed=1)
    assert adapter_bytes(first) == adapter_bytes(again)
    assert adapter_bytes(first) != adapter_bytes(other)


def test_training_raises_the_reward(tmp_path):
    """A short real QLoRA run: the reward of its last eight steps is above that of its first eight."""
    result = train(CPPOConfig(output=str(tmp_path / "a"), steps=30, eval_rows=0), progress=False)
    rewards = [step["reward"] for step in result.history]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.03


def test_the_merged_model_computes_what_the_policy_computes(tmp_path):
    from cppo_ref.vlm.export import export_merged

    result = run(tmp_path / "a", 2)
    policy = load_policy("tiny", adapter=str(result.adapter))
    for parameter in policy.trainable:
        parameter.data += 0.02  # far enough from the base that a merge without adapters would be seen
    policy.model.save_pretrained(tmp_path / "moved")
    report = export_merged("tiny", str(tmp_path / "moved"), tmp_path / "merged")
    assert float(report.rsplit(" ", 2)[1]) < 5e-3  # nats; the base model is 5.8 nats away
    merged = load_policy(str(tmp_path / "merged"), quantize="none", lora=None)
    assert {p.dtype for p in merged.model.parameters()} == {torch.float32}
    rollouts = generate_rollouts(
        policy, split_rows("test", count=4), group_size=2, max_new_tokens=19, rng=torch.Generator().manual_seed(0)
    )
    args = rollouts.prompts.take(rollouts.prompt_of_row), rollouts.completion_ids, rollouts.completion_mask
    with torch.no_grad():  # float32 on both sides: only the rounding of the weights to 16 bits is left
        kl = torch.nn.functional.kl_div(
            merged.score(*args).log_softmax(-1), policy.score(*args).log_softmax(-1), reduction="none", log_target=True
        )
    assert kl.sum(-1)[rollouts.completion_mask].mean() < 5e-3
    assert "quantization_config" not in json.loads(Path(tmp_path / "merged" / "config.json").read_text())
    with pytest.raises(InputError, match=r"^dtype is 'int8', expected bfloat16 or float16$"):
        export_merged("tiny", str(result.adapter), tmp_path / "other", "int8")


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path):
    with pytest.raises(InputError, match=r"expected a name in .* such as step-000040"):
        latest_checkpoint(tmp_path / "mine", "../../other/checkpoints/step-000002")


def test_an_optimizer_state_that_is_not_whole_is_named(tmp_path):
    policy = load_policy("tiny")
    optimizer = torch.optim.AdamW(policy.trainable)
    saved = save_checkpoint(tmp_path, 2, policy, optimizer, None, keep=1)
    (saved / "optimizer.pt").write_bytes(b"torn")
    said = f"{saved}/optimizer.pt is no optimizer state of this model: take another checkpoint"
    with pytest.raises(InputError, match=re.escape(said)):
        restore_checkpoint(saved, policy, optimizer)


def test_what_was_just_saved_stays_though_a_damaged_one_is_newer(tmp_path):
    policy = load_policy("tiny")
    optimizer = torch.optim.AdamW(policy.trainable)
    for step in (2, 4):
        save_checkpoint(tmp_path, step, policy, optimizer, None, keep=3)
    (tmp_path / "checkpoints" / "step-000004" / "optimizer.pt").write_bytes(b"torn")
    saved = save_checkpoint(tmp_path, 3, policy, optimizer, None, keep=1)
    assert saved.is_dir() and latest_checkpoint(tmp_path) == saved


def test_going_back_leaves_no_later_checkpoint_to_resume_from_and_no_foreign_file_is_lost(tmp_path):
    policy = load_policy("tiny")
    optimizer = torch.optim.AdamW(policy.trainable)
    back, later, last = (save_checkpoint(tmp_path, step, policy, optimizer, None, keep=3) for step in (2, 4, 6))
    (later / ".DS_Store").write_text("a desktop's own")
    drop_later(back)
    assert latest_checkpoint(tmp_path) == back and not later.exists() and not last.exists()
    assert (later.with_name("dropped-step-000004") / ".DS_Store").read_text() == "a desktop's own"


def test_a_log_line_whose_reward_has_lost_its_name_is_dropped_and_counted(tmp_path, capsys):
    whole = [{"step": step, "reward": 0.5} for step in range(3)]
    damaged = json.dumps(whole[1]).replace("reward", "rewerd")
    lines = [json.dumps(whole[0]), damaged, json.dumps(whole[2])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = RunFolder(tmp_path, CPPOConfig())
    run.begin(3)
    assert run.history == [whole[0], whole[2]]
    assert "metrics.jsonl: 1 damaged line(s) dropped" in capsys.readouterr().out
