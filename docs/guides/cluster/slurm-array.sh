#!/bin/bash
# sbatch --array=0-7 slurm-array.sh --suite cifar-fast --method all
#SBATCH --job-name=bench
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
: "${MLFLOW_TRACKING_URI:?the address of the tracking server}"
srun python -m bench run --store "${BENCH_STORE:-runs}" "$@"
code=$?
if [ "$code" = 130 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
