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
nodes="" time="24:00:00" gpus_per_node=8 partition=""
options="nodes time gpus-per-node partition" required="nodes"
source "$root/scripts/launching.sh"
read_options "$@"
if ! [[ "$nodes" =~ ^[1-9][0-9]*$ && "$gpus_per_node" =~ ^[1-9][0-9]*$ ]]; then
  echo "$launcher: --nodes $nodes, --gpus-per-node $gpus_per_node: give whole numbers from 1 on." >&2
  exit 2
fi

command="$(printf '%q ' "$root/.venv/bin/kdjax" "${kdjax[@]}" --distributed auto)"
again=() # a job that was requeued goes on with what it began
for word in "${kdjax[@]}"; do
  if [ "$word" != --overwrite ] && [ "$word" != --resume ]; then again+=("$word"); fi
done
resumed="$(printf '%q ' "$root/.venv/bin/kdjax" "${again[@]}" --distributed auto --resume)"
job="$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=kdjax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kdjax-%j.log
${partition:+#SBATCH --partition=$partition
}
cd $(printf '%q' "$root")
status=0
if [ "\${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  srun --kill-on-bad-exit=0 $resumed || status=\$?
else
  srun --kill-on-bad-exit=0 $command || status=\$?
fi
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
