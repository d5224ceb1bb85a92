#!/usr/bin/env bash
# One run over the nodes of a Slurm job; what stands behind it is for `mmsearch train`:
#
#   sbatch --nodes 4 src/mmsearch_trl/recipes/lmm_r1/slurm.sh --config lmm_r1/70b
#
# Two stages are two jobs: sbatch --dependency afterok:JOB starts the second when the first has ended well. A job that
# was taken away goes on from its newest checkpoint when it is queued again (--requeue).
#SBATCH --job-name=mmsearch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

: "${SLURM_JOB_NODELIST:?start it with sbatch}"
nodes=$SLURM_NNODES
gpus=${SLURM_GPUS_ON_NODE:-8}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# SIGTERM comes five minutes before the time is up, and has the run save its last whole step.
exec srun --kill-on-bad-exit=1 bash -c '
    nodes=$1 gpus=$2 head=$3 port=$4
    shift 4
    exec mmsearch train --accelerate multi_node --num_machines "$nodes" --num_processes "$((nodes * gpus))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$head" --main_process_port "$port" "$@" \
        --resume_from_checkpoint auto
' mmsearch "$nodes" "$gpus" "$head" "$port" "$@"
