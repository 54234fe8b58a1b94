#!/bin/bash
#PBS -N {{ name }}
{% if runs > 1 %}
#PBS -J 0-{{ runs - 1 }}{{ "%%%d" % at_once if at_once else "" }}
{% endif %}
#PBS -l select=1:ncpus={{ cores }}:mem={{ memory }}
#PBS -l walltime={{ walltime }}
#PBS -j oe
{% if queue %}
#PBS -q {{ queue }}
{% endif %}
{% if email %}
#PBS -M {{ email }}
#PBS -m abe
{% endif %}
# {{ runs }} run{{ "s" if runs > 1 }} of an experiment, one in each task. A task that is started again goes on where it was.
set -euo pipefail
export OMP_NUM_THREADS=1
cd -- {{ directory }}
exec {{ command }} --only "${PBS_ARRAY_INDEX:-0}"
