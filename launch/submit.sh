#!/usr/bin/env bash
# Submit a run to the Ray cluster that RAY_ADDRESS names, and follow its log until it ends:
#
#   RAY_ADDRESS=http://HEAD:8265 launch/submit.sh CONFIG [more arguments of "minillm-ray train"]
#   RAY_ADDRESS=http://HEAD:8265 launch/submit.sh configs/quickstart.yaml -s run_dir=/shared/runs/first
#
# minillm_ray is installed on every node of the cluster; only CONFIG is sent, alone, so that nothing else in its folder
# is packed and uploaded. Paths in it (run_dir, models, data) are therefore absolute and on storage that every node
# sees under the same name. A relative run_dir would be lost with the job's own folder, so it is refused here.
#
# RAY_ADDRESS      The dashboard's address, http:// or https://.
# MINILLM_PYTHON   Absolute path of the interpreter on the cluster's nodes. A bare "python" would be looked up in the
#                  PATH of Ray's own shell. Unset: this checkout's .venv/bin/python, else the python3 found here.
#
# Ctrl-C stops following; the run goes on. "ray job stop ID" ends it: it then has 60 seconds to end the round in progress
# and write a checkpoint (Ray's default is 3). The same command again continues.
# Exit status: 0 the run succeeded, 1 it failed or could not be submitted, 2 bad usage (one message, nothing is sent).
set -euo pipefail

fail() {
    echo "submit.sh: $1" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: RAY_ADDRESS=http://HEAD:8265 launch/submit.sh CONFIG [-s section.key=value ...]"

[[ $# -ge 1 ]] || fail "no CONFIG given; $usage"
config=$1
shift
[[ -f $config ]] || fail "CONFIG $config is not a file; expected a run file such as configs/quickstart.yaml. $usage"
address=${RAY_ADDRESS:-}
[[ -n $address ]] || fail "RAY_ADDRESS is not set; expected the dashboard of a running cluster. $usage"
[[ $address =~ ^https?:// ]] || fail "RAY_ADDRESS=$address is not the dashboard's address; expected http://HEAD:8265"

# An override wins over the file; the last of several wins.
run_dir=$(sed -n "s/^run_dir:[[:space:]]*[\"']\{0,1\}\([^\"'#]*\).*/\1/p" "$config")
for argument in "$@"; do
    case $argument in
        run_dir=*) run_dir=${argument#run_dir=} ;;
        -srun_dir=*) run_dir=${argument#-srun_dir=} ;;
    esac
done
[[ $run_dir == /* ]] || fail "run_dir is \"$run_dir\"; on a cluster expected an absolute path on shared storage. \
Add: -s run_dir=/shared/runs/NAME"

python=${MINILLM_PYTHON:-$root/.venv/bin/python}
[[ -n ${MINILLM_PYTHON:-} || -x $python ]] || python=$(command -v python3) || fail "no python3 here; set MINILLM_PYTHON"
[[ $python == /* ]] || fail "MINILLM_PYTHON=$python is not an absolute path; expected the interpreter on the nodes"
ray=$root/.venv/bin/ray
[[ -x $ray ]] || ray=$(command -v ray) || fail "the ray command is not here; install it: pip install 'ray[default]'"

sent=$(mktemp -d)
trap 'rm -rf "$sent"' EXIT
cp "$config" "$sent/"

unset RAY_API_SERVER_ADDRESS # it would win over the address given here
"$ray" job submit --address "$address" --working-dir "$sent" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' \
    -- "$python" -m minillm_ray train "$(basename "$config")" "$@"
