#!/bin/bash
# Train a ladder of widths as an array job of Slurm, one width per task, and forecast the target when all have finished:
#
#   bash examples/slurm_ladder.sh
#   WIDTHS="256 384 512 768" SEEDS="1 2 3" OUT=runs/ladder bash examples/slurm_ladder.sh --gpus=1 --time=02:00:00
#
# Start it in the repository, in the environment that has muNeoX; every host reads the folder. The arguments go to sbatch.
# PROXY and TARGET are lists of configuration files; add runs/search/best.yml to PROXY after a search. A job that is
# submitted again trains the missing runs. The forecast is registered in OUT.json before the target is trained.
set -euo pipefail

export WIDTHS=${WIDTHS:-32 64 96 128 160}
export SEEDS=${SEEDS:-1 2}
export OUT=${OUT:-runs/ladder}
export PROXY=${PROXY:-configs/mup/base.yml configs/local_setup.yml}
export TARGET=${TARGET:-configs/mup/target.yml configs/local_setup.yml}
widths=($WIDTHS)

ladder=$(sbatch --parsable --job-name=ladder --array=0-$((${#widths[@]} - 1)) --output=ladder-%A-%a.out "$@" <<'JOB'
#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
set -eu
widths=($WIDTHS)
srun python tools/mup/sweep.py $PROXY --widths "${widths[$SLURM_ARRAY_TASK_ID]}" --seeds $SEEDS --out "$OUT"
JOB
)

forecast=$(sbatch --parsable --job-name=forecast --dependency=afterok:"${ladder%%;*}" --output=forecast-%j.out <<'JOB'
#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks=1
set -eu
python tools/mup/width_check.py "$OUT" --out "$OUT-width_check" || echo "a wider model is worse: see $OUT-width_check.png"
python tools/scaling/predict_loss.py "$OUT" --y valid/loss --target-config $TARGET --save "$OUT.json" --plot "$OUT.png"
JOB
)

echo "job ${ladder%%;*} trains widths $WIDTHS; job ${forecast%%;*} then writes $OUT.json and $OUT.png"
