"""A teacher's outputs from a file, with several processes: each takes those of its own rows."""

import json

import numpy as np
import pytest

from kdjax.data import load
from tests.experiment.test_processes import finish, outcome, start, together

CONFIG = """
from kdjax.objectives import KD
from kdjax.schedules import steps
from tests.experiment.conftest import small

def experiment():
    return small(KD(temperature=2.0), length=6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npz", "jsonl"])
def test_two_processes_are_taught_what_one_is(suffix, tmp_path, data_dir):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    labels = load("digits", split="train", data_dir=data_dir).labels
    logits = np.random.default_rng(0).normal(size=(len(labels), 10)).astype(np.float32)  # each row a word of its own
    index = np.random.default_rng(1).permutation(len(labels))
    said = tmp_path / f"said.{suffix}"
    if suffix == "npz":
        np.savez(said, logits=logits[index], index=index)
    else:
        rows = ({"index": int(i), "logits": logits[i].tolist()} for i in index)
        said.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for name, processes, devices in (("one", 1, 4), ("two", 2, 2)):
        begun = start(config, tmp_path / name, data_dir, processes, devices, "--teacher", str(said))
        ended = finish(begun)
        assert all(status == 0 for status, _ in ended), ended
        found[name] = outcome(tmp_path / name), (tmp_path / name / "student/metrics.jsonl").read_text()
    (one, rows), (two, others) = found["one"], found["two"]
    assert two == pytest.approx(one, rel=1e-4)
    losses = [[json.loads(row)["loss"] for row in text.splitlines() if '"train"' in row] for text in (rows, others)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


SAME = """
import sys
from kdjax.training.processes import connect, same_in_all
connect(sys.argv[1])
print(same_in_all("one"), same_in_all(sys.argv[1]))
"""


@pytest.mark.slow
def test_hosts_find_out_that_their_files_differ():
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in together(SAME)]
    assert said == ["True False"] * 2
