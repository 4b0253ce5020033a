#!/bin/sh
# Starts a worker and its supervisor in a container: it listens everywhere, and tells other workers the container's own
# name. The supervisor may be the first process: it passes signals on and reaps.
set -eu
exec headrace worker --datadir /data \
  --web-bind 0.0.0.0 --web-host "$(hostname)" --web-port 6066 "$@"
