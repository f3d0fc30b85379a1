#!/bin/bash
# An array of Slurm jobs, a card each: `sbatch examples/cluster/slurm.sh loras/ wan/ fastwan/ /scratch/night`.
# Preempted shares are queued again, and go on with what is missing. `loraport status /scratch/night` says how far all are.
#SBATCH --job-name=loraport
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@30
set -euo pipefail
loras=$1 source=$2 target=$3 place=$4

srun loraport batch "$loras" --source "$source" --target "$target" -o "$place" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --device cuda --keep-going
