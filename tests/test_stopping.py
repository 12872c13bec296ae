"""What ends a run early, and how a folder knows that it is whole."""

import re
import signal
import threading

import pytest

from cppo_ref.config import InputError
from cppo_ref.runs.manifest import check_whole, damage, owned, seal
from cppo_ref.runs.stopping import ZERO_STEPS, Stop, Stopped, collapsed, stop_signals

WAY = "take another checkpoint; if you edited it, delete its manifest.json"


def rewards(*values):
    return [{"reward": value} for value in values]


@pytest.mark.parametrize(
    ("history", "steps", "over"),
    [
        ([0.4] * 20 + [0.0] * 20, 40, True),
        ([0.4] * 20 + [0.0] * 19, 39, False),  # not long enough
        ([0.4] * 20 + [0.0] * 20, 19, False),  # most of them in the run before: it was resumed
        ([0.0] * 60, 60, False),  # it never earned anything
        ([0.01] * 20 + [0.0] * 20, 40, False),  # rewards were rare before
        ([0.4] * 20 + [0.0] * 19 + [0.1], 40, False),
    ],
)
def test_a_policy_has_collapsed_if_it_earned_rewards_and_does_not_any_more(history, steps, over):
    assert ZERO_STEPS == 20
    assert collapsed(rewards(*history), steps) is over


def test_the_first_request_waits_for_the_step_and_the_second_does_not(capsys):
    stop = Stop()
    with pytest.raises(Stopped):
        stop.ask(15, None)  # nothing has begun
    stop.patient = True
    stop.ask(2, None)
    assert stop.number == 2 and "stopping after this step, with a checkpoint" in capsys.readouterr().out
    with pytest.raises(Stopped, match="stopped at once: what was saved before is whole"):
        stop.ask(2, None)


def test_a_request_in_the_middle_of_a_print_is_taken_as_well(monkeypatch):
    def reentrant(*_, **__):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr("builtins.print", reentrant)
    stop = Stop(patient=True)
    stop.ask(2, None)
    assert stop.number == 2


def test_handlers_come_back_and_one_that_python_did_not_set_becomes_the_default(monkeypatch):
    put = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: put.append((number, handler)))  # returns None
    with stop_signals() as stop:
        assert put == [(signal.SIGINT, stop.ask), (signal.SIGTERM, stop.ask)]
    assert put[2:] == [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL)]


def test_in_a_thread_nobody_can_ask():
    before, seen = signal.getsignal(signal.SIGINT), []

    def in_thread():
        with stop_signals() as stop:
            seen.append((stop, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [(Stop(), before)]


def test_a_folder_knows_whether_it_is_whole_and_what_is_not_its_own(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"abc")
    (tmp_path / "card.md").write_text("old")
    (tmp_path / "state.json").write_text("{}")
    seal(tmp_path)
    assert damage(tmp_path) == "" and owned(tmp_path)
    (tmp_path / "card.md").write_text("may be edited")
    (tmp_path / "mine").write_text("not of the run")
    assert damage(tmp_path) == "" and not owned(tmp_path)
    (tmp_path / "inner" / "a").write_bytes(b"abb")
    assert damage(tmp_path) == "inner/a is not what was written"
    said = f"{str(tmp_path)!r} is damaged (inner/a is not what was written): {WAY}"
    with pytest.raises(InputError, match=re.escape(said)):
        check_whole(tmp_path / "inner")
    (tmp_path / "inner" / "a").unlink()
    assert damage(tmp_path) == "inner/a is absent"
    (tmp_path / "manifest.json").write_text("{")
    assert damage(tmp_path) == "manifest.json is absent or damaged" and not owned(tmp_path)


def test_the_manifest_of_something_else_says_nothing_of_an_adapter(tmp_path):
    """Browser extensions and web pages have a manifest.json, too."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "manifest.json").write_text('{"name": "my page", "icons": [1, 2]}')
    check_whole(tmp_path / "adapter")
    (tmp_path / "state.json").write_text("{}")  # now it is a checkpoint
    said = f"{str(tmp_path)!r} is damaged (manifest.json is absent or damaged): {WAY}"
    with pytest.raises(InputError, match=re.escape(said)):
        check_whole(tmp_path / "adapter")
