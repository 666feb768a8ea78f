#!/bin/bash
# A command that needs the network: tried again twice, as registries fail now and then.
# usage: thrice.sh COMMAND...
for pause in 5 20; do
  "$@" && exit
  echo "failed, tried again in $pause s: $1 $2" >&2
  sleep $pause
done
exec "$@"
