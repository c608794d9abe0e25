#!/bin/bash
# Make data in N parts, each a job of its own, and complete it by one more when all are there (fgbg-check needs none):
#
#   deploy/slurm/parts.sh N fgbg-pack SOURCE --shards SHARDS
#   SBATCH_GPUS=1 deploy/slurm/parts.sh N fgbg-depth OLD --shards NEW --model teacher.onnx
#
# Options of sbatch: in part.sbatch, or as variables of the environment (SBATCH_PARTITION, SBATCH_TIMELIMIT ...).
# A part that is killed, requeued or out of time goes on where it was. Where one has failed: mend it, and give the same
# command again; parts that are done do nothing.
set -euo pipefail

if [ $# -lt 2 ] || ! [ "$1" -gt 0 ]; then
  echo "usage: $0 N COMMAND..., as: $0 32 fgbg-pack SOURCE --shards SHARDS" >&2
  exit 2
fi
parts=$1
shift
script=$(dirname "$0")/part.sbatch
array=$(sbatch --parsable --array="0-$((parts - 1))" "$script" "$@")
case " ${1##*/} $* " in
*" fgbg-check "*)
  echo "parts: job $array, $parts tasks"
  exit
  ;;
esac
finish=$(sbatch --parsable --dependency="afterok:$array" --kill-on-invalid-dep=yes "$script" "$@")
echo "parts: job $array, $parts tasks; after them: job $finish"
