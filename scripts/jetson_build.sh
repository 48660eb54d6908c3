#!/usr/bin/env bash
# From a copied bundle to TensorRT engines and a parity check on a Jetson, without torch.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/jetson_build.sh BUNDLE [options]

Builds the TensorRT engines of a bundle on this Jetson (JetPack 6.1 or newer) and checks them
against the reference results inside the bundle. Export the bundle on another machine and copy
the whole folder here. Nothing is installed outside the virtual environment.

Options:
  --workspace MIB         scratch memory that one layer may use (default 2048)
  --tactic-memory MIB     memory that trying one kernel may take (default: half of the RAM)
  --venv DIR              virtual environment to create or reuse (default ~/.venvs/structsam)
  --package SPEC          what pip installs: a wheel or a checkout (default: this checkout)
  --swap-hint             print how to add 8 GiB of swap, and stop
  -h, --help              print this text

Expected: one line per engine, the parity table, the page of `structsam-export doctor` for a bug
report, and exit code 0; a build that fails shows that page as well. With 8 GiB of RAM close the
desktop first: sudo systemctl isolate multi-user.target
TEXT
}

swap_hint() {
  cat <<'TEXT'
The GPU of a Jetson shares the RAM, so an engine build may be killed. Swap keeps everything else
out of its way; zram would take RAM for it:
  sudo systemctl disable --now nvzramconfig
  sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile
  sudo mkswap /swapfile && sudo swapon /swapfile
  echo '/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab
TEXT
}

fail() {
  printf 'jetson_build.sh: %s\n' "$*" >&2
  exit 2
}

bundle=""
workspace=2048
tactic_memory=""
venv="${HOME}/.venvs/structsam"
package="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --swap-hint) swap_hint && exit 0 ;;
    --workspace | --tactic-memory | --venv | --package)
      [[ $# -ge 2 ]] || fail "$1 needs a value; see --help"
      case "$1" in
        --workspace) workspace="$2" ;;
        --tactic-memory) tactic_memory="$2" ;;
        --venv) venv="$2" ;;
        --package) package="$2" ;;
      esac
      shift 2
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *)
      [[ -z "${bundle}" ]] || fail "more than one bundle: ${bundle} and $1; see --help"
      bundle="$1"
      shift
      ;;
  esac
done

[[ -n "${bundle}" ]] || fail "no bundle given; see --help"
[[ -f "${bundle}/manifest.json" ]] ||
  fail "${bundle} has no manifest.json; copy the whole folder that structsam-export export made"
[[ "$(uname -m)" == "aarch64" ]] ||
  fail "this machine is $(uname -m), not a Jetson; use structsam-export build here"

ram_mib=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)
swap_mib=$(awk '/^SwapTotal:/ { print int($2 / 1024) }' /proc/meminfo)
tactic_memory="${tactic_memory:-$((ram_mib / 2))}"
for value in "${workspace}" "${tactic_memory}"; do
  [[ "${value}" =~ ^[1-9][0-9]*$ ]] || fail "${value} is no number of MiB; see --help"
done

# JetPack installs TensorRT for its own Python, which the virtual environment must therefore use.
python=/usr/bin/python3
trt_version=$("${python}" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
  fail "${python} cannot import tensorrt; install it with: sudo apt install nvidia-jetpack"
[[ "$(printf '10.3\n%s\n' "${trt_version}" | sort -V | head -n 1)" == "10.3" ]] ||
  fail "TensorRT ${trt_version} is too old, 10.3 or newer is needed; update to JetPack 6.1 or newer"
cuda_major=$("${python}" - 2>/dev/null <<'PYTHON'
import ctypes

version = ctypes.c_int()
assert ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0
print(version.value // 1000)
PYTHON
) || fail "the CUDA driver does not answer; is this a container without --runtime nvidia?"

printf 'TensorRT %s, CUDA %s, %s MiB RAM, %s MiB swap\n' \
  "${trt_version}" "${cuda_major}" "${ram_mib}" "${swap_mib}"
if ((ram_mib < 12000 && swap_mib < 4000)); then
  printf 'Little memory: if the build is killed, see %s --swap-hint\n' "$0" >&2
fi

if [[ ! -x "${venv}/bin/python" ]]; then
  "${python}" -m venv --system-site-packages "${venv}" ||
    fail "cannot create ${venv}; install venv with: sudo apt install python3-venv"
fi
"${venv}/bin/python" -m pip install --quiet "${package}" \
  "cuda-bindings>=${cuda_major}.0,<$((cuda_major + 1))" ||
  fail "pip could not install ${package}; its messages are above"

# The page for a bug report comes last, whatever happened; the exit code stays what it was.
trap '"${venv}/bin/structsam-export" doctor || true' EXIT
"${venv}/bin/structsam-export" build "${bundle}" --backend tensorrt \
  --workspace "${workspace}" --tactic-memory "${tactic_memory}"
"${venv}/bin/structsam-export" check "${bundle}" --backend tensorrt --require tensorrt
