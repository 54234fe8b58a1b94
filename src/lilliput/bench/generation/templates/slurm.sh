#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --array=0-{{ runs - 1 }}{{ "%%%d" % at_once if at_once else "" }}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={{ cores }}
#SBATCH --mem={{ memory }}
#SBATCH --time={{ walltime }}
#SBATCH --signal=B:TERM@60
{% if queue %}
#SBATCH --partition={{ queue }}
{% endif %}
{% if email %}
#SBATCH --mail-user={{ email }}
#SBATCH --mail-type=BEGIN,END,FAIL
{% endif %}
# {{ runs }} run{{ "s" if runs > 1 }} of an experiment, one in each task. A task that is started again goes on where it was.
set -euo pipefail
export OMP_NUM_THREADS=1
cd -- {{ directory }}
exec {{ command }} --only "${SLURM_ARRAY_TASK_ID:-0}"
