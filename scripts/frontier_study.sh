#!/usr/bin/env bash
# The frontier: input size x rate x placement x precision, what each costs and what it loses.
#
#   scripts/frontier_study.sh --root DATA --out OUT [--model M] [--checkpoint FILE]
#       [--images N] [--calibrate DIR] [--large DIR] [--threads N] [PART...]
#
# DATA holds images and masks as `evaluate --dataset folder` takes them (or name another layout with
# --dataset); with folders SET/images and SET/masks every set is shown by itself. Parts:
#   native    sizes 1024 to 512, StructSAM and the strongest other method (tomesd) at 0.25, 0.5 and
#             0.7, attention and stage; box prompts
#   upsample  the same with the embedding upsampled to the trained size
#   clicks    both with one click instead of a box
#   large     both, boxes and clicks, against the unmerged model's own masks at 1024 on the photos
#             of --large, which need no annotation
#   int8      all of it with INT8 linear layers, on ONNX Runtime; needs --calibrate
#   latency   the native encoders, FP32 and INT8, timed in turns beside the stock export, one input
#             size after the other, on ONNX Runtime and OpenVINO
# Default: all that the arguments allow. Interrupted, the same command goes on where it stopped.
# Tables and charts are OUT/frontier.md and OUT/frontier-CHAPTER.png.
set -euo pipefail

usage() { sed -n '2,20s/^# \{0,1\}//p' "$0" >&2; exit 2; }

root='' out='' dataset=folder images=60 calibrate='' large='' threads=''
model=(--model vit_t) weights=()
parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --dataset) dataset=$2; shift 2 ;;
    --model) model=(--model "$2"); shift 2 ;;
    --checkpoint) weights=(--checkpoint "$2"); shift 2 ;;
    --images) images=$2; shift 2 ;;
    --calibrate) calibrate=$2; shift 2 ;;
    --large) large=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    -*) usage ;;
    *) parts+=("$1"); shift ;;
  esac
done
[ -n "$root" ] && [ -n "$out" ] || usage
if [ ${#parts[@]} -eq 0 ]; then
  parts=(native upsample clicks)
  [ -n "$large" ] && parts+=(large)
  [ -n "$calibrate" ] && parts+=(int8)
  parts+=(latency)
fi

smaller=896,768,640,512
sizes=1024,$smaller rates=0.25,0.5,0.7 methods=structsam,tomesd
places=(--placement attention --placement stage)
scored=(--max-objects 5 --metrics iou,boundary_iou ${threads:+--threads "$threads"})
mkdir -p "$out"

evaluate() {  # CHAPTER PROMPT ...: on the annotated photos, or on the large ones
  local chapter=$1 prompt=$2 set=(--dataset "$dataset" --root "$root" --limit "$images")
  shift 2
  case $chapter in *large-*) large_masks; set=(--dataset folder --root "$out/large-masks") ;; esac
  structsam-export evaluate "${set[@]}" "${scored[@]}" --prompt "$prompt" --out "$out/$chapter" "$@"
}
points() {  # CHAPTER PROMPT FORM: the points of the frontier, as `evaluate` makes them in PyTorch
  evaluate "$1" "$2" "${model[@]}" "${weights[@]}" --image-size "$sizes" --embedding "$3" \
    --methods "$methods" --rates "$rates" "${places[@]}"
}
large_masks() {  # the unmerged model's own masks of the large photos
  [ -d "$out/large-masks" ] || python "$(dirname "$0")/pseudo_masks.py" "$large" "$out/large-masks" \
    "${model[@]}" "${weights[@]}"
}
bundle() {  # SIZE METHOD RATE PLACE PRECISION -> its folder; one that is there is kept
  local name=$5-$1-$2-$3-$4 size=${1%up} form=native
  [ "$size" = "$1" ] || form=upsample  # 768up: 768 pixels, upsampled
  if [ ! -f "$out/bundles/$name/manifest.json" ]; then
    local more=()
    [ "$5" = fp32 ] || more=(--calibrate "$calibrate")
    [ "$3" != 0 ] || more+=(--attention dense)  # the fastest on a CPU where nothing merges
    # exit 1: parity failed, which is a finding and no reason to stop
    structsam-export export "${model[@]}" "${weights[@]}" --image-size "$size" --embedding "$form" \
      --method "$2" --rate "$3" --placement "$4" --precision "$5" "${more[@]}" \
      --backend onnxruntime --out "$out/bundles" --name "$name" >&2 || [ $? -eq 1 ]
  fi
  echo "$out/bundles/$name"
}
points_of() {  # SIZE PRECISION -> the folders of its points
  bundle "$1" structsam 0 attention "$2"
  for method in ${methods//,/ }; do
    for rate in ${rates//,/ }; do
      for place in attention stage; do bundle "$1" "$method" "$rate" "$place" "$2"; done
    done
  done
}
bundles_of() {  # SIZE -> the folders of its points in FP32, and in INT8 where that can be
  points_of "$1" fp32
  [ -z "$calibrate" ] || points_of "$1" int8-fp32
}

for part in "${parts[@]}"; do
  case $part in
    native | upsample) points box box "$part" ;;
    clicks) for form in native upsample; do points click click "$form"; done ;;
    large)
      [ -n "$large" ] || { echo "large needs --large DIR" >&2; exit 2; }
      for prompt in box click; do
        for form in native upsample; do points "large-$prompt" "$prompt" "$form"; done
      done
      ;;
    int8)
      [ -n "$calibrate" ] || { echo "int8 needs --calibrate DIR" >&2; exit 2; }
      mapfile -t bundles < <(bundle 1024 structsam 0 attention fp32
        for size in ${sizes//,/ }; do points_of "$size" int8-fp32; done
        for size in ${smaller//,/ }; do points_of "${size}up" int8-fp32; done)
      for prompt in box click; do
        for chapter in "int8-$prompt" ${large:+"int8-large-$prompt"}; do
          evaluate "$chapter" "$prompt" "${bundles[@]}" --backend onnxruntime
        done
      done
      ;;
    latency)
      for size in ${sizes//,/ }; do
        [ ! -f "$out/latency-$size/bench.json" ] || continue
        mapfile -t bundles < <(bundles_of "$size")
        structsam-export bench "${bundles[@]}" --baselines --backend onnxruntime --backend openvino \
          ${threads:+--threads "$threads"} --keep "$out/encoders" --out "$out/latency-$size"
      done
      ;;
    *) echo "unknown part $part" >&2; exit 2 ;;
  esac
done
python "$(dirname "$0")/frontier_tables.py" "$out"
