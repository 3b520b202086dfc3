#!/bin/bash
# Prints the Debian mirror of this machine's apt configuration, in either format of its sources.
# Third-party repositories are excluded by their suite: Debian's is the code name of this release.
set -euo pipefail
[ -n "${BULKHEAD_LAB_MIRROR:-}" ] && { echo "$BULKHEAD_LAB_MIRROR"; exit; }
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
found=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v suite="$codename" '$1 == suite && $2 == "main" { print $3 }')
mirror=$(grep -m1 '/debian/*$' <<<"$found" || head -n1 <<<"$found")
[ -n "$mirror" ] || { echo "no Debian 'main' source in this machine's apt configuration; set BULKHEAD_LAB_MIRROR" >&2; exit 1; }
echo "${mirror%/}"
