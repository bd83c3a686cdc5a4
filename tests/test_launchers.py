"""The launchers, run dry: what they would do on every host, and what they refuse."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMAND = ["distill", "configs/digits/smoke.py", "--run", "/shared/a run"]


def launch(name, *options, environment=None):
    return subprocess.run(
        ["bash", SCRIPTS / f"launch_{name}.sh", *options], capture_output=True, text=True, env=environment
    )


def test_slurm_starts_a_process_for_each_gpu_with_the_same_line():
    said = launch("slurm", "--dry-run", "--nodes", "2", "--gpus-per-node", "4", "--partition", "long", "--", *COMMAND)
    assert said.returncode == 0, said.stderr
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=24:00:00", "--partition=long"):
        assert f"#SBATCH {line}\n" in said.stdout
    line = r"kdjax distill configs/digits/smoke.py --run /shared/a\ run --distributed auto"
    assert f"{line}  || status" in said.stdout and f"{line} --resume  || status" in said.stdout
    said = launch("slurm", "--dry-run", "--nodes", "2", "--", *COMMAND, "--overwrite")
    assert said.stdout.count("--overwrite") == 1 and f"{line} --resume  || status" in said.stdout


@pytest.mark.parametrize(("restarts", "status", "resumes", "again"), [("0", 143, False, True), ("1", 0, True, False)])
def test_a_slurm_job_that_was_stopped_queues_itself_again(tmp_path, restarts, status, resumes, again):
    """The job, with stand-ins for Slurm's commands."""
    said = launch("slurm", "--dry-run", "--nodes", "1", "--", *COMMAND)
    job = said.stdout.split("\n", 1)[1].rsplit("JOB", 1)[0]
    for name, ends in {"srun": status, "scontrol": 0}.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\nexit {ends}\n')
        command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": restarts, "SLURM_JOB_ID": "17"
    }  # fmt: skip
    assert subprocess.run(["bash", "-c", job], env=environment).returncode == status
    first, *others = (tmp_path / "called").read_text().splitlines()
    assert first.endswith("--resume") == resumes
    assert others == (["scontrol requeue 17"] if again else [])


def test_a_tpu_pod_runs_the_line_on_all_workers():
    said = launch("tpu_pod", "--dry-run", "--name", "v4", "--zone", "us-central2-b", "--", *COMMAND)
    assert said.returncode == 0, said.stderr
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {said.stdout}"], capture_output=True, text=True).stdout
    assert words.splitlines()[:8] == [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", "v4", "--zone=us-central2-b", "--worker=all"
    ]  # fmt: skip
    assert (
        r"cd ~/kdjax && .venv/bin/kdjax distill configs/digits/smoke.py --run /shared/a\ run --distributed auto"
        in words
    )
    options = ("--name", "v4", "--zone", "us-central2-b", "--folder")
    for folder, place in (("/mnt/my disk/kdjax", r"cd /mnt/my\ disk/kdjax &&"), ("~/my disk", r"cd ~/my\ disk &&")):
        said = launch("tpu_pod", "--dry-run", *options, folder, "--", *COMMAND)
        shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {said.stdout}"], capture_output=True, text=True)
        assert place in shown.stdout


def test_the_run_folder_may_follow_a_sign_of_equality():
    assert launch("slurm", "--dry-run", "--nodes", "2", "--", "distill", "a.py", "--run=/shared/a").returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("slurm", ["--nodes", "2", "--", "distill", "a.py"], "name the run folder with --run"),
        ("slurm", ["--nodes", "two", "--", *COMMAND], "--nodes two, --gpus-per-node 8: give whole numbers"),
        ("slurm", ["--node", "2", "--", *COMMAND], "unknown option --node"),
        ("slurm", ["--", *COMMAND], "scripts/launch_slurm.sh [--dry-run] --nodes N"),
        ("tpu_pod", ["--name", "v4", "--zone", "z"], "scripts/launch_tpu_pod.sh [--dry-run] --name TPU"),
    ],
)
def test_what_is_missing_is_said(name, options, sentence):
    said = launch(name, "--dry-run", *options)
    assert said.returncode == 2 and sentence in said.stderr and not said.stdout
