#!/usr/bin/env bash
# What merging costs in quality: every table of docs/fidelity.md, in OUT/tables.md.
#
#   scripts/fidelity_study.sh DATA/test OUT [IMAGES] [PART...]
#
# DATA/test holds SET/images and SET/masks; IMAGES (default 100) spread over bsds, camvid, coco and
# voc are used, with up to five objects each. Parts: methods layers ablations placements attention
# prompts; default all. Interrupted, the same command goes on where it stopped.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
data=$1 out=$2 images=${3:-100}
shift $(($# < 3 ? $# : 3))
parts=${*:-methods layers ablations placements attention prompts}

sets=$out/sets
mkdir -p "$sets"
for name in bsds camvid coco voc; do
  ln -sfn "$(realpath "$data/$name")" "$sets/$name"
done

run() {
  structsam-export evaluate --dataset folder --root "$sets" --limit "$images" \
    --max-objects 5 --metrics iou,boundary_iou --out "$out/results" "$@"
}

for part in $parts; do
  case $part in
    methods) run --methods all --rates 0.25,0.5,0.7 ;;
    layers) run --methods all --rates 0.25,0.5,0.7 --layers global --layers 7,8,9,10,11 ;;
    ablations)
      for option in operator=central flatness=mean destination=max destination=random \
        cells=random variant=no_cell channels=all; do
        run --methods structsam --rates 0.5 --option $option
      done
      # windows of 14 cannot be cut into cells of 4
      run --methods structsam --rates 0.5 --option cell_size=4 --layers global
      ;;
    placements)
      run --methods structsam,tome --rates 0.25,0.5,0.7 --placement block --placement stage
      ;;
    attention) run --methods structsam,tome --rates 0.5 --proportional ;;
    prompts)
      run --methods structsam --rates 0.5 --prompt-aware
      run --methods structsam --rates 0.5 --prompt-aware --prompt-form windows
      ;;
    *) echo "unknown part $part" >&2; exit 2 ;;
  esac
done
python "$(dirname "$0")/fidelity_tables.py" "$out/results" > "$out/tables.md"
structsam-export report "$out/results" --out "$out/report" --title "What merging costs"
