#!/usr/bin/env bash
# Runs one kdjax command on every host of a Cloud TPU pod slice.
#
#   scripts/launch_tpu_pod.sh [--dry-run] --name TPU --zone ZONE [--project P] [--folder F] -- distill CONFIG --run FOLDER ...
#
# On every host the repository is in F (~/kdjax if not given) with its .venv (pip install -e '.[train]' and jax[tpu]). The run
# folder must be on a disk that all hosts see: a Filestore share, or a bucket mounted by gcsfuse. After a preemption run the
# same line with --resume at its end. --dry-run prints what would be run and runs nothing.
set -euo pipefail

name="" zone="" project="" folder='~/kdjax' dry_run=no
usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while [ "$#" -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=yes; shift ;;
    --name) name="${2:?}"; shift 2 ;;
    --zone) zone="${2:?}"; shift 2 ;;
    --project) project="${2:?}"; shift 2 ;;
    --folder) folder="${2:?}"; shift 2 ;;
    --) shift; break ;;
    *) echo "launch_tpu_pod.sh: unknown option $1" >&2; usage ;;
  esac
done
if [ -z "$name" ] || [ -z "$zone" ] || [ "$#" -eq 0 ]; then usage; fi
case " $* " in
  *" --run "*) ;;
  *) echo "launch_tpu_pod.sh: name the run folder with --run, on a disk that all hosts see; it is needed to go on." >&2; exit 2 ;;
esac

command=(
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker=all
  --command="cd $folder && $(printf '%q ' .venv/bin/kdjax "$@" --distributed auto)"
)
if [ "$dry_run" = yes ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
