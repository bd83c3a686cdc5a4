#!/usr/bin/env bash
# Runs one kdjax command on several nodes of a Slurm cluster, a process for each GPU.
#
#   scripts/launch_slurm.sh [--dry-run] --nodes N [--time T] [--gpus-per-node G] [--partition P] -- distill CONFIG --run FOLDER ...
#
# The job asks Slurm to send SIGTERM two minutes before its time is up, at which kdjax saves its state and stops; the job then
# queues itself again and goes on with --resume. The folder of the repository, its .venv and the run folder must be on a disk
# that all nodes see. --dry-run prints the job and submits nothing.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
nodes="" time_limit="24:00:00" gpus=8 partition="" dry_run=no
usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while [ "$#" -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=yes; shift ;;
    --nodes) nodes="${2:?}"; shift 2 ;;
    --time) time_limit="${2:?}"; shift 2 ;;
    --gpus-per-node) gpus="${2:?}"; shift 2 ;;
    --partition) partition="${2:?}"; shift 2 ;;
    --) shift; break ;;
    *) echo "launch_slurm.sh: unknown option $1" >&2; usage ;;
  esac
done
if [ -z "$nodes" ] || [ "$#" -eq 0 ]; then usage; fi
case " $* " in
  *" --run "*) ;;
  *) echo "launch_slurm.sh: name the run folder with --run, on a disk that all nodes see; it is needed to go on." >&2; exit 2 ;;
esac

command="$(printf '%q ' "$root/.venv/bin/kdjax" "$@" --distributed auto)"
job="$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=kdjax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time_limit
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kdjax-%j.log
${partition:+#SBATCH --partition=$partition
}
cd $(printf '%q' "$root")
resume=""
if [ "\${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then resume="--resume"; fi
status=0
srun --kill-on-bad-exit=0 $command\$resume || status=\$?
# 143: stopped by SIGTERM with its state saved.
if [ "\$status" -eq 143 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
JOB
)"
if [ "$dry_run" = yes ]; then
  printf '%s\n' "sbatch <<'JOB'" "$job" "JOB"
else
  sbatch <<<"$job"
fi
