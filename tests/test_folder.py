"""The run folder: who owns it, what it refuses, what a run that goes on may change."""

import errno
import fcntl
import json
import os
import socket
import sys

import pytest

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.runs import folder as module
from cppo_ref.runs.folder import RunFolder
from cppo_ref.runs.manifest import check_whole, seal

HOST = socket.gethostname()


def run_in(path, **settings):
    return RunFolder(path, CPPOConfig(output=str(path), **settings))


def begun(path, **settings):
    """A folder with the config of a run in it."""
    path.mkdir(exist_ok=True)
    run_in(path, **settings).begin(0)
    return path


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with run_in(tmp_path / "a").claim(False):
        said = rf"a' is in use \(process {os.getpid()} on {HOST}\): wait for it or choose another --output"
        with pytest.raises(InputError, match=said), run_in(tmp_path / "a").claim(False):
            pass
        assert (tmp_path / "a" / ".owner").read_text() == f"process {os.getpid()} on {HOST}"  # still the first one's
    assert not (tmp_path / "a").exists()  # it was empty


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ("process 7 on colab-1", "was in use (process 7 on colab-1): if that still runs, stop it or this run"),
        (f"process 1234567890 on {HOST}", ""),  # here, a lock says whether it lives
        ("", ""),
    ],
)
def test_the_owner_that_another_machine_left_is_named(owner, said, tmp_path, capsys):
    (tmp_path / ".owner").write_text(owner)
    with run_in(tmp_path).claim(False):
        assert (tmp_path / ".owner").read_text() == f"process {os.getpid()} on {HOST}"
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)


@pytest.mark.parametrize(
    ("failure", "refused"),
    [
        (BlockingIOError(), "is in use"),
        (PermissionError(errno.EACCES, "Permission denied"), "is in use"),  # NFS
        (OSError(errno.ENOLCK, "No locks available"), ""),
    ],
)
def test_what_a_lock_may_say(failure, refused, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise failure

    monkeypatch.setattr(fcntl, "flock", fail)
    if refused:
        with pytest.raises(InputError, match=r"is in use \(another process\)"), run_in(tmp_path).claim(False):
            pass
    else:
        with run_in(tmp_path).claim(False):
            pass
        assert "cannot be locked ([Errno 37] No locks available): start no second run in it" in capsys.readouterr().out


def test_a_system_without_locks_and_a_drive_whose_files_change_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", lambda *_: False)
        said = "owner' is another file each time: choose an --output on another drive"
        with pytest.raises(InputError, match=said), run_in(tmp_path).claim(False):
            pass
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    said = "training locks its run folder, for which Windows has no fcntl: train in WSL"
    with pytest.raises(InputError, match=said), run_in(tmp_path).claim(False):
        pass


def test_a_run_that_came_and_went_since_the_look_is_not_overwritten(tmp_path):
    late = RunFolder.check(CPPOConfig(output=str(tmp_path)), resume=False)
    begun(tmp_path, seed=7)
    said = "holds a run already: add --resume to go on, or choose another --output"
    with pytest.raises(InputError, match=said), late.claim(False):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_hidden_files_are_nobody_s_run(tmp_path):
    (tmp_path / ".DS_Store").write_text("a desktop's own")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    RunFolder.check(CPPOConfig(output=str(tmp_path)), resume=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is no run and holds 'notes.txt': choose a new or an empty folder"):
        RunFolder.check(CPPOConfig(output=str(tmp_path)), resume=False)


def test_a_run_goes_on_with_its_data_at_another_place_once_its_config_says_so(tmp_path):
    path, moved = begun(tmp_path / "a", data="old/rows.jsonl"), {"data": "new/rows.jsonl"}
    with pytest.raises(InputError) as caught:
        RunFolder.check(CPPOConfig(output=str(path), **moved), resume=True)
    assert str(caught.value) == (
        f"run {str(path)!r} was started with other settings (data was 'old/rows.jsonl' and is 'new/rows.jsonl'): use those, or "
        f"another --output; if its model or data have only moved, write their new place into {str(path / 'config.json')!r}"
    )
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | moved))
    assert RunFolder.check(CPPOConfig(output=str(path), **moved), resume=True).changes == {}


def test_a_damaged_config_is_one_sentence(tmp_path):
    (begun(tmp_path) / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json' is damaged \(.*\): copy it back from one of the run's checkpoints"):
        RunFolder.check(CPPOConfig(output=str(tmp_path)), resume=True)


def checkpoint(path, computing):
    path.mkdir()
    (path / "state.json").write_text(json.dumps({"step": 3, "score": None, "reward": 0.1, "logs": {}, **computing}))
    return path


@pytest.mark.parametrize("before", [{"computing": "float16 on Tesla T4"}, {"computing": "bfloat16 on NVIDIA A100"}, {}])
def test_another_number_format_or_card_is_named_and_logged(before, tmp_path, capsys):
    found, run = checkpoint(tmp_path / "step-000003", before), run_in(tmp_path, device="cuda")
    run.begin(3, found, "bfloat16 on NVIDIA A100")
    changed = "T4" in str(before)
    said = "from step 3 on with other settings: computing was 'float16 on Tesla T4' and is 'bfloat16 on NVIDIA A100'\n"
    assert capsys.readouterr().out == said * changed
    logged = tmp_path / "changes.jsonl"
    assert logged.is_file() == changed
    if changed:
        record = {"step": 3, "computing": ["float16 on Tesla T4", "bfloat16 on NVIDIA A100"]}
        assert json.loads(logged.read_text()) == record


def test_a_change_is_logged_before_the_config_hides_it(tmp_path, monkeypatch):
    begun(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    changes = {"dtype": "bfloat16", "device": "cpu", "learning_rate": 1e-5}
    run = RunFolder.check(CPPOConfig(output=str(tmp_path), **changes), resume=True)
    monkeypatch.setattr(module, "_write_aside", killed)
    with pytest.raises(KeyboardInterrupt):
        run.begin(2)
    logged = json.loads((tmp_path / "changes.jsonl").read_text())
    expected = {name: [CPPOConfig().to_dict()[name], value] for name, value in changes.items()}
    assert logged == {"step": 2, **expected}
    assert RunFolder.check(CPPOConfig(output=str(tmp_path), **changes), resume=True).changes == expected


def test_the_adapter_of_a_checkpoint_is_judged_by_its_own_files(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for name in ("state.json", "optimizer.pt"):
        (tmp_path / name).write_text("{}")
    seal(tmp_path)
    (tmp_path / "optimizer.pt").unlink()  # who shares an adapter leaves it out
    check_whole(adapter)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "mine"}')
    with pytest.raises(InputError, match=r"damaged \(adapter/adapter_config.json is not .*\): take another .* delete its man"):
        check_whole(adapter)
    (tmp_path / "manifest.json").unlink()  # the way that the message names
    check_whole(adapter)
