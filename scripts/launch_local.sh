#!/bin/bash
# Start N workers of a command on this machine, for tests.
#
#   scripts/launch_local.sh N COMMAND [ARGUMENT…]
#   KERAS_BACKEND=jax scripts/launch_local.sh 2 keras-transfer train flowers --out run --distribute jax …
#
# Each worker receives TF_CONFIG (or, with KERAS_BACKEND=jax, Keras's variables for JAX) with free ports of
# 127.0.0.1. Every line of output begins with the worker's number. When one fails, the others have
# $LAUNCH_GRACE seconds (60) to report and exit before they are killed; the exit status is that of the
# first that failed. SIGTERM and Ctrl-C are passed on. With GPUs, LAUNCH_GPUS=1 gives worker i only
# GPU i (CUDA_VISIBLE_DEVICES).
set -um # a worker and what it starts are a process group

usage() { echo "usage: $0 N COMMAND [ARGUMENT…]" >&2; exit 2; }
[ $# -ge 2 ] || usage
count=$1; shift
[[ $count =~ ^[1-9][0-9]*$ ]] || usage

ports=$("${PYTHON:-python3}" - "$count" <<'PY'
import socket, sys
taken = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in taken:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in taken))
PY
) || exit 1
addresses=(); for port in $ports; do addresses+=("127.0.0.1:$port"); done
comma=$(IFS=,; echo "${addresses[*]}")

worker() {
  if [ "${KERAS_BACKEND:-}" = jax ]; then
    export KERAS_DISTRIBUTION_JOB_ADDRESSES=$comma
    export KERAS_DISTRIBUTION_NUM_PROCESSES=$count KERAS_DISTRIBUTION_PROCESS_ID=$1
  else
    quoted=\"${comma//,/\",\"}\"
    export TF_CONFIG="{\"cluster\":{\"worker\":[$quoted]},\"task\":{\"type\":\"worker\",\"index\":$1}}"
  fi
  [ -n "${LAUNCH_GPUS:-}" ] && export CUDA_VISIBLE_DEVICES=$1
  export PYTHONUNBUFFERED=1
  prefix="[$1] "; shift
  exec "$@" > >(exec sed -u "s/^/$prefix/") 2> >(exec sed -u "s/^/$prefix/" >&2)
}

started=()
for ((i = 0; i < count; i++)); do
  worker "$i" "$@" &
  started+=($!)
done

all() { for pid in "${started[@]}"; do kill "-$1" "$pid" 2>/dev/null; done; }
trap 'all TERM' TERM
trap 'all INT' INT

status=0 left=$count
while [ "$left" -gt 0 ]; do
  wait -n -p ended "${started[@]}"; code=$?
  if [ -z "${ended:-}" ]; then
    [ "$code" -ge 128 ] && continue  # the wait was ended by a signal, not a worker
    break
  fi
  remaining=()
  for pid in "${started[@]}"; do [ "$pid" = "$ended" ] || remaining+=("$pid"); done
  started=("${remaining[@]}"); left=${#started[@]}
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    echo "a worker ended with status $code; the other $left have ${LAUNCH_GRACE:-60} s to end" >&2
    (
      sleep "${LAUNCH_GRACE:-60}"
      for pid in "${started[@]}"; do kill -KILL -- "-$pid" 2>/dev/null; done
    ) </dev/null >/dev/null 2>&1 &
    killer=$!
  fi
  unset ended
  [ "$left" -eq 0 ] && break
done
[ -n "${killer:-}" ] && kill -- "-$killer" 2>/dev/null
exit "$status"
