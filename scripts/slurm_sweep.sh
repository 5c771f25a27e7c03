#!/usr/bin/env bash
# A sweep on a SLURM cluster: one job of the cluster for each job of the sweep, one table at the end.
#
#   pip install 'twin_merging[submitit]'
#   scripts/slurm_sweep.sh                               # the sweep below
#   scripts/slurm_sweep.sh +exp=quickstart seed=0,1,2    # your own
#
# Run it on a login node, in tmux or with nohup: it waits for the jobs, which takes no computing, and then writes the
# table. If it ends before they do, start it again: with sweep.resume=true it goes on in the same folder, skips what is
# done and waits for what still runs. Each job's output is in the sweep's folder, under .submitit/JOB_ID/.
set -euo pipefail
cd "$(dirname "$0")/.."

# Settings of your cluster. Others: python run.py hydra/launcher=submitit_slurm --cfg hydra --package hydra.launcher
PARTITION=${PARTITION:-gpu}
GPUS=${GPUS:-1}                   # of each job
CPUS=${CPUS:-8}
MEMORY_GB=${MEMORY_GB:-32}
MINUTES=${MINUTES:-120}
AT_ONCE=${AT_ONCE:-16}            # jobs that run side by side
CACHE=${CACHE:-outputs/cache}     # on a disk that all nodes see: each expert is fine-tuned once, the other jobs wait for it
PYTHON=${PYTHON:-.venv/bin/python}

if [ $# -eq 0 ]; then
  set -- +exp=quickstart merge_method=ties,task_arithmetic,twin evaluation.heads=oracle sparsifier.rank=1,16,64 seed=0,1,2
fi

# Compute nodes are often without a network: fetch models and data first, on this one (python -m twin_merging.assets fetch).
exec "$PYTHON" run.py --multirun "$@" \
  sweep.resume=true \
  paths.cache="$CACHE" \
  hydra/launcher=submitit_slurm \
  hydra.launcher.partition="$PARTITION" \
  hydra.launcher.gpus_per_node="$GPUS" \
  hydra.launcher.cpus_per_task="$CPUS" \
  hydra.launcher.mem_gb="$MEMORY_GB" \
  hydra.launcher.timeout_min="$MINUTES" \
  hydra.launcher.array_parallelism="$AT_ONCE"
