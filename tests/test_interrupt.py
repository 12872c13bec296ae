"""A stop button: Ctrl-C in a notebook's cell finishes the step and saves, and the next cell goes on."""

import json
import re
import time

from jupyter_client.manager import start_new_kernel

CELL = """
from cppo_ref.config import CPPOConfig
from cppo_ref.training import train
settings = dict(output="run", prompts_per_step=2, group_size=2, max_new_tokens=19, lora_rank=2, eval_rows=0, save_every=10**6)
print(len(train(CPPOConfig(**settings, steps={steps}), resume={resume}, progress=False).history), "steps")
"""


def messages(client, request):
    """What a cell sends until it is done, as (kind, content)."""
    while True:
        message = client.get_iopub_msg()
        if message["parent_header"].get("msg_id") == request:
            if message["content"].get("execution_state") == "idle":
                return
            yield message["msg_type"], message["content"]


def printed(sent):
    return "".join(content["text"] for kind, content in sent if kind == "stream")


def test_the_stop_button_of_a_notebook_costs_no_step_and_the_next_cell_goes_on(tmp_path):
    manager, client = start_new_kernel(startup_timeout=600, cwd=str(tmp_path))
    log = tmp_path / "run" / "metrics.jsonl"
    try:
        request = client.execute(CELL.format(steps=10**6, resume=False))
        while not (log.is_file() and log.read_text()):  # the first step is taken
            assert manager.is_alive() and client.is_alive()
            time.sleep(0.05)
        manager.interrupt_kernel()
        sent = list(messages(client, request))
        (error,) = (content for kind, content in sent if kind == "error")
        assert "stopping after this step, with a checkpoint; once more stops at once" in printed(sent)
        assert error["ename"] == "Stopped"
        said = r"stopped after step (\d+), all of it in run/checkpoints/step-(\d+): go on with `python -m cppo_ref train .*`"
        step, done = map(int, re.fullmatch(said, error["evalue"]).groups())
        assert done == step + 1 == len(log.read_text().splitlines())

        sent = list(messages(client, client.execute(CELL.format(steps=done + 1, resume=True))))
        assert [content for kind, content in sent if kind == "error"] == []
        assert f"{done + 1} steps" in printed(sent)
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(done + 1))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
