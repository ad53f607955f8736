#!/bin/bash
# sbatch slurm.sh --suite cifar-fast --method all
#SBATCH --job-name=bench
#SBATCH --ntasks=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
: "${MLFLOW_TRACKING_URI:?the address of the tracking server}"
srun --kill-on-bad-exit=0 python -m bench run --store "${BENCH_STORE:-runs}" "$@"
code=$?
# Stopped three minutes ahead of its time: what is left is for the next turn.
if [ "$code" = 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
