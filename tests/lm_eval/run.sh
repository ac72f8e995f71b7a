#!/bin/sh
# Runs lm-evaluation-harness, as it is, on a multiple-choice task against `samara serve`, and compares the
# log-likelihoods with those of `samara score`. Usage: tests/lm_eval/run.sh [-m MODEL ...]; the arguments go to both.
# SAMARA is the program (target/release/samara), LM_EVAL the harness; without it, it is installed into a new folder
# (about 800 MB: no PyTorch, but datasets, pandas, scikit-learn).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
samara=${SAMARA:-$here/../../target/release/samara}
work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || :
  rm -r "$work"
}
trap finish EXIT

if [ -z "${LM_EVAL:-}" ]; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet "lm-eval[api]==0.4.13"
  LM_EVAL=$work/venv/bin/lm_eval
fi

"$samara" serve --port 0 --name samara "$@" >"$work/address" &
server=$!
until url=$(sed -n 's/^listening on //p' "$work/address") && [ -n "$url" ]; do
  kill -0 "$server" || exit 1
  sleep 0.1
done

# The harness asks the server for its tokenizer, which puts no beginning-of-text token in front: hence --no-bos.
cd "$here"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
"$LM_EVAL" --model local-completions --include_path . --tasks fables --log_samples --output_path "$work/logged" \
  --model_args "model=samara,base_url=$url/v1/completions,num_concurrent=4,max_length=${MAX_LENGTH:-512}"
"$samara" score --tasks fables.jsonl --no-bos --json "$@" >"$work/scores.jsonl"
python3 compare.py "$(find "$work/logged" -name 'samples_fables_*.jsonl')" "$work/scores.jsonl"
