#!/bin/sh
# Train on the hosts of a hostfile with Open MPI:
#
#   MASTER_ADDR=node1 sh configs/launch/mpirun.sh hosts configs/125M.yml configs/local_setup.yml --load checkpoints
#
# The hostfile has one line `host slots=N` for each host, and MASTER_ADDR is the first one. Run it in the folder of
# train.py, which is the same on all hosts. To stop: `kill -USR1` to mpirun saves and exits with code 0. At SIGTERM, SIGINT
# and SIGHUP mpirun ends its processes, after odls_base_sigkill_timeout seconds at the latest: a save is not certain.
# -x passes a variable by its name, so that its value is in no list of processes.
set -e
hostfile=$1
shift

# What is set of these reaches the workers. Add the names of others.
variables=
for name in MASTER_ADDR MASTER_PORT PATH PYTHONPATH OMP_NUM_THREADS WANDB_API_KEY WANDB_MODE; do
  if printenv "$name" >/dev/null; then
    variables="$variables -x $name"
  fi
done

exec mpirun --hostfile "$hostfile" --bind-to none --mca odls_base_sigkill_timeout 120 $variables \
  python -u train.py "$@"
