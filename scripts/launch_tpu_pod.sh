#!/usr/bin/env bash
# Runs one kdjax command on every host of a Cloud TPU pod slice.
#
#   scripts/launch_tpu_pod.sh [--dry-run] --name TPU --zone ZONE [--project P] [--folder F] -- distill CONFIG --run FOLDER ...
#
# On every host the repository is in F (~/kdjax if not given) with its .venv (pip install -e '.[train]' and jax[tpu]). The run
# folder must be on a disk that all hosts see: a Filestore share, or a bucket mounted by gcsfuse. After a preemption run the
# same line with --resume at its end. --dry-run prints what would be run and runs nothing.
set -euo pipefail

name="" zone="" project="" folder='~/kdjax'
options="name zone project folder" required="name zone"
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
read_options "$@"

case "$folder" in
  "~") where="~" ;;
  "~/"*) where="~/$(printf '%q' "${folder#\~/}")" ;; # the home is that of the host
  *) where="$(printf '%q' "$folder")" ;;
esac
command=(
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker=all
  --command="cd $where && $(printf '%q ' .venv/bin/kdjax "${kdjax[@]}" --distributed auto)"
)
if [ "$dry_run" = yes ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
