#!/bin/sh
# Starts a worker in a container: it listens everywhere, and tells other workers the container's own name.
# --quiet spares the log Faust's banner. Further arguments go to `faust worker`.
set -eu
exec faust --quiet --datadir /data -A streams.app worker -l info \
  --web-bind 0.0.0.0 --web-host "$(hostname)" --web-port 6066 "$@"
