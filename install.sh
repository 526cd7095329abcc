#!/bin/sh
# Installs balancerd and balancerctl, and removes them again. `./install.sh --help` says how.
#
# What it put where stands in PREFIX/share/balancer/manifest; --uninstall goes by that and touches nothing else. The
# manifest is written before the files are, so that an installation that broke off can be removed as well.
set -eu
umask 022
LC_ALL=C
export LC_ALL

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# The first line of the settings file, and the user's comment: they tell later that this script made them.
SETTINGS_MARK='# Settings of balancer.service. install.sh made this file and does not touch it again.'
USER_MARK='Load balancer, made by install.sh'

help() {
    cat <<'HELP'
Builds and installs balancerd and balancerctl with man pages, completions, an example of the configuration file and a
systemd unit.

Usage: ./install.sh [OPTIONS]
       ./install.sh --uninstall [--purge] [--prefix DIR]
       ./install.sh --demo

  --demo          Install nothing: build, and run `balancerctl demo`
  --prefix DIR    Where to: bin, share/man, share/*completions and the unit go below it.
                  Without it /usr/local for root and ~/.local for others
  --from DIR      Take the two programs from DIR instead of building them, as in
                  cargo build --release && sudo ./install.sh --from target/release
  --no-systemd    No unit, no settings file, no user
  --user NAME     The user that the service runs as (root only; without it: balancer)
  --group NAME    The group whose members may use balancerctl (root only; without it: as the user)
  --destdir DIR   For packagers: everything below DIR as if that were /; no user is made
  --debug-info    Install the debug information of the programs, too, in files of their own (bin/.debug), where
                  debuggers find it. The programs themselves are stripped of it either way
  --uninstall     Remove what was installed below the prefix; state and changed settings stay
  --purge         With --uninstall: remove state, settings and a user that this script made, too
  --help          This text

It can be run again, with another version or other options: it replaces its own files, never
anybody else's. A balancer that runs is not disturbed; it is the old version until its restart.

Examples:
  ./install.sh --demo                     See it at work first
  ./install.sh                            For you alone, in ~/.local
  sudo ./install.sh                       For the machine, with a service
  sudo ./install.sh --uninstall --purge   As if it had never been here
HELP
}

say() {
    printf '%s\n' "$*"
}

warn() {
    printf 'install.sh: %s\n' "$*" >&2
}

die() {
    warn "$@"
    exit 1
}

# --- what is asked for ------------------------------------------------------------------------------------------------

action=install
prefix=
from=
systemd=yes
service_user=
service_group=
destdir=
debug_info=no
purge=no

while [ $# -gt 0 ]; do
    case $1 in
    --*=*)
        option=${1%%=*}
        value=${1#*=}
        shift
        set -- "$option" "$value" "$@"
        case $option in
        --prefix | --from | --user | --group | --destdir) ;;
        *) die "$option takes no value; --help lists the options" ;;
        esac
        ;;
    esac
    case $1 in
    --prefix | --from | --user | --group | --destdir)
        if [ $# -lt 2 ] || [ -z "$2" ]; then die "$1 needs a value; --help lists the options"; fi
        case $1 in
        --prefix) prefix=$2 ;;
        --from) from=$2 ;;
        --user) service_user=$2 ;;
        --group) service_group=$2 ;;
        --destdir) destdir=$2 ;;
        esac
        shift
        ;;
    --uninstall) action=uninstall ;;
    --demo) action=demo ;;
    --purge) purge=yes ;;
    --debug-info) debug_info=yes ;;
    --no-systemd) systemd=no ;;
    --help | -h)
        help
        exit 0
        ;;
    *) die "$1 is not an option; --help lists them" ;;
    esac
    shift
done

[ "$purge" = no ] || [ "$action" = uninstall ] || die '--purge goes with --uninstall'
[ "$debug_info" = no ] || [ "$action" = install ] || die '--debug-info goes with an installation'

root=no
[ "$(id -u)" -ne 0 ] || root=yes
if [ "$root" = no ] && [ -n "$service_user$service_group" ]; then
    die 'only root can install a service that runs as somebody else: leave --user and --group out, or use sudo'
fi
service_user=${service_user:-balancer}
service_group=${service_group:-$service_user}
for name in "$service_user" "$service_group"; do
    case $name in
    *[!a-z0-9_-]* | [!a-z_]*) die "$name is not the name of a user or group" ;;
    esac
done

if [ -z "$prefix" ]; then
    if [ "$root" = yes ]; then
        prefix=/usr/local
    else
        [ -n "${HOME:-}" ] || die 'HOME is not set, so there is no usual prefix; give --prefix DIR'
        prefix=$HOME/.local
    fi
fi

# Absolute, and without a slash at its end: the unit and the manifest have these paths in them.
absolute() {
    case $1 in
    /*) path=$1 ;;
    *) path=$(pwd)/$1 ;;
    esac
    while [ "$path" != "${path%/}" ]; do path=${path%/}; done
    printf '%s\n' "$path"
}

newline='
'
for path in "$prefix" "$destdir"; do
    case $path in
    *[\"\'\\\`\$%]* | *"$newline"*) die "$path has a character in it that a unit file cannot hold" ;;
    */../* | */.. | ../* | ..) die "$path has .. in it; name the directory itself" ;;
    esac
done
prefix=$(absolute "$prefix")
[ -z "$destdir" ] || destdir=$(absolute "$destdir")

# --- where things lie -------------------------------------------------------------------------------------------------

manifest=$prefix/share/balancer/manifest
documents=$prefix/share/doc/balancer
if [ "$root" = yes ]; then
    unit=$prefix/lib/systemd/system/balancer.service
    state=/var/lib/balancer
else
    # systemd looks for a user's own units in ~/.local/share/systemd/user.
    unit=$prefix/share/systemd/user/balancer.service
    state=${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}/balancer
fi
case $root$prefix in
yes/usr | yes/usr/local) etc=/etc ;;
*) etc=$prefix/etc ;;
esac
settings=$etc/default/balancer
# The unit's configuration file, which only people put there, and an example beside its place.
config=$etc/balancer/balancer.toml
example=$config.example

systemctl_() {
    if [ "$root" = yes ]; then systemctl "$@"; else systemctl --user "$@"; fi
}

# Whether a systemd runs that this installation is for.
systemd_runs() {
    [ -z "$destdir" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1 &&
        systemctl_ show-environment >/dev/null 2>&1
}

# Whether systemd finds units beside this one by itself.
unit_is_found() {
    case $root$unit in
    yes/usr/lib/* | yes/usr/local/lib/* | yes/lib/*) true ;;
    no*) [ "$unit" = "${XDG_DATA_HOME:-${HOME:-}/.local/share}/systemd/user/balancer.service" ] ;;
    *) false ;;
    esac
}

# --- building ---------------------------------------------------------------------------------------------------------

# Names everything that a build lacks, at once.
require_tools() {
    missing=
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' "$HERE/Cargo.toml")
    if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        missing=yes
        warn "cargo is missing: install Rust $wanted or later from https://rustup.rs"
        warn '  (apt-get install rustup, where Debian has it; the package cargo is too old in Debian 12 and 13)'
    elif ! version=$(cargo --version 2>&1); then
        missing=yes
        warn "cargo does not run: $version"
    elif ! at_least "$wanted" "$version"; then
        missing=yes
        warn "$version is too old, $wanted is needed: rustup update stable"
    fi
    if ! command -v cc >/dev/null 2>&1; then
        missing=yes
        warn 'cc, which links the programs, is missing: apt-get install gcc libc6-dev'
    else
        scratch=$(mktemp -d)
        printf 'int main(void) { return 0; }\n' >"$scratch/a.c"
        if ! cc -o "$scratch/a" "$scratch/a.c" >/dev/null 2>&1; then
            missing=yes
            warn 'cc cannot link a program, the C library is missing: apt-get install libc6-dev'
        fi
        rm -rf "$scratch"
    fi
    [ -z "$missing" ] || exit 1
}

# at_least 1.89 'cargo 1.95.0 (...)'
at_least() {
    printf '%s %s\n' "$1" "$2" | awk '{ split($1, a, "."); split($3, b, "."); exit !(b[1] > a[1] || b[1] == a[1] && b[2] >= a[2]) }'
}

# build PROFILE DIRECTORY: leaves both programs in $from.
build() {
    require_tools
    target=$(absolute "${CARGO_TARGET_DIR:-$HERE/target}")
    (cd "$HERE" && cargo build --locked --profile "$1" --target-dir "$target" -p balancerd -p balancerctl)
    from=$target/$2
}

# --- the files --------------------------------------------------------------------------------------------------------

# What both units have in common.
write_unit() {
    if [ "$root" = yes ]; then
        write_system_unit
    else
        write_user_unit
    fi
}

write_system_unit() {
    cat <<UNIT
# install.sh made this file and replaces it. What it serves stands in $config, where that file is there, else in
# $settings. Everything else: \`systemctl edit balancer\`.

[Unit]
Description=Layer-4 load balancer
Documentation=man:balancerd($man_section) man:balancerctl(1)
Wants=network-online.target
After=network-online.target
# A balancer that is down serves nobody: it is started again as often as it takes.
StartLimitIntervalSec=0

[Service]
Type=notify
Environment=BALANCER_LISTEN=$listen
EnvironmentFile=-$settings
ExecStart="$prefix/bin/balancerd" --listen \${BALANCER_LISTEN} --config-if-exists "$config" --socket /run/balancer/control.sock --state /var/lib/balancer --log journald \$BALANCER_OPTIONS
# Returns when the file has been read: with an error, and its reason in the journal, where it was not taken.
ExecReload="$prefix/bin/balancerctl" --socket /run/balancer/control.sock reload
Restart=on-failure
RestartSec=1s
# balancerd says that its loop turns; one that stands still for so long is killed and started again.
WatchdogSec=30s
# Longer than the drain time, 30 s: a --drain-timeout in BALANCER_OPTIONS needs more here.
TimeoutStopSec=60s
KillMode=mixed

# Its own user; the group may use the control socket.
User=$service_user
Group=$service_group
UMask=0027
RuntimeDirectory=balancer
RuntimeDirectoryMode=0750
StateDirectory=balancer
StateDirectoryMode=0750

# Two descriptors for each session. Four threads: the loop, the log, the state file, the configuration file.
LimitNOFILE=1048576
TasksMax=32

# Ports below 1024 are the one thing that it may do and others may not.
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes

# It sees the system read-only, and nothing of people, devices and the kernel.
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
# Not ProtectProc=invisible: whether who connects to the control socket is in its group stands in /proc/PID/status.
ProtectProc=default
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @keyring @memlock
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
UNIT
}

write_user_unit() {
    cat <<UNIT
# install.sh made this file and replaces it. What it serves stands in $config, where that file is there, else in
# $settings. Everything else: \`systemctl --user edit balancer\`.

[Unit]
Description=Layer-4 load balancer
Documentation=man:balancerd($man_section) man:balancerctl(1)
StartLimitIntervalSec=0

[Service]
Type=notify
Environment=BALANCER_LISTEN=$listen
EnvironmentFile=-$settings
ExecStart="$prefix/bin/balancerd" --listen \${BALANCER_LISTEN} --config-if-exists "$config" --log journald \$BALANCER_OPTIONS
# Returns when the file has been read: with an error, and its reason in the journal, where it was not taken.
ExecReload="$prefix/bin/balancerctl" reload
Restart=on-failure
RestartSec=1s
WatchdogSec=30s
# Longer than the drain time, 30 s: a --drain-timeout in BALANCER_OPTIONS needs more here.
TimeoutStopSec=60s
KillMode=mixed
UMask=0027

# What a user's systemd can do without privileges.
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
UNIT
}

write_settings() {
    cat <<SETTINGS
$SETTINGS_MARK

# Where clients connect, as long as there is no file $config; with it, only what it says holds.
# [::]:80 takes IPv4 clients too.
BALANCER_LISTEN=$listen

# Further options, as \`balancerd --help\` has them, separated by blanks. With a longer --drain-timeout than 30s, raise
# TimeoutStopSec of the unit as well.
#BALANCER_OPTIONS=--idle-timeout 10m --connect-timeout 1s

# How much is logged: error, warn, info, debug or trace.
#BALANCER_LOG=info
SETTINGS
}

# Puts everything into $stage, laid out as below /, and lists it there in `files`.
prepare() {
    tree=$stage/tree
    : >"$stage/files"
    for program in balancerd balancerctl; do
        [ -x "$from/$program" ] || die "$from/$program is not there; build first, or leave --from out"
        stage_program "$program"
    done

    mkdir "$stage/man"
    "$from/balancerctl" man --out "$stage/man" >/dev/null
    "$from/balancerd" --generate man >"$stage/man/balancerd"
    # The page itself says which section it is of.
    man_section=$(awk '$1 == ".TH" { print $3; exit }' "$stage/man/balancerd")
    case $man_section in
    [1-8]) ;;
    *) man_section=8 ;;
    esac
    mv "$stage/man/balancerd" "$stage/man/balancerd.$man_section"
    for page in "$stage"/man/*; do
        stage_file 644 "$prefix/share/man/man${page##*.}/${page##*/}" cat "$page"
    done

    completions=$prefix/share
    stage_file 644 "$completions/bash-completion/completions/balancerd" "$from/balancerd" --generate bash
    stage_file 644 "$completions/bash-completion/completions/balancerctl" "$from/balancerctl" completions bash
    stage_file 644 "$completions/zsh/site-functions/_balancerd" "$from/balancerd" --generate zsh
    stage_file 644 "$completions/zsh/site-functions/_balancerctl" "$from/balancerctl" completions zsh
    stage_file 644 "$completions/fish/vendor_completions.d/balancerd.fish" "$from/balancerd" --generate fish
    stage_file 644 "$completions/fish/vendor_completions.d/balancerctl.fish" "$from/balancerctl" completions fish

    [ -f "$HERE/packaging/balancer.toml" ] || die "$HERE/packaging/balancer.toml is not there; it belongs to install.sh"
    stage_file 644 "$example" cat "$HERE/packaging/balancer.toml"

    # In the same folders as here, so that the links between them hold.
    for page in "$HERE"/*.md "$HERE"/LICENSE "$HERE"/bench/README.md "$HERE"/docs/*.md "$HERE"/docs/*/*.svg; do
        [ -f "$page" ] || die "$page is not there; it belongs to install.sh"
        stage_file 644 "$documents/${page#"$HERE"/}" cat "$page"
    done
    stage_file 644 "$documents/packaging/balancer.toml" cat "$HERE/packaging/balancer.toml"

    if [ "$systemd" = yes ]; then
        stage_file 644 "$unit" write_unit
    fi
}

# stage_program NAME: without the debug information, which is five sixths of it, and that in a file of its own if wanted.
stage_program() {
    if ! command -v strip >/dev/null 2>&1 || ! command -v objcopy >/dev/null 2>&1; then
        [ "$debug_info" = no ] || die 'strip and objcopy are missing: apt-get install binutils; or leave --debug-info out'
        warn "strip is missing (apt-get install binutils): $1 is installed with its debug information, six times as large"
        stage_file 755 "$prefix/bin/$1" cat "$from/$1"
        return
    fi
    stripped=$stage/$1
    strip -o "$stripped" "$from/$1" || die "$from/$1 could not be stripped"
    if [ "$debug_info" = yes ]; then
        # The name that the program remembers is the file's own, and debuggers look for it in .debug beside the program.
        debug=$stage/$1.debug
        objcopy --only-keep-debug "$from/$1" "$debug" || die "the debug information of $from/$1 could not be copied"
        objcopy --add-gnu-debuglink="$debug" "$stripped" || die "$from/$1 could not be linked to its debug information"
        stage_file 644 "$prefix/bin/.debug/$1.debug" cat "$debug"
    fi
    stage_file 755 "$prefix/bin/$1" cat "$stripped"
}

# stage_file MODE PATH COMMAND...: the file has what the command prints.
stage_file() {
    mode=$1
    path=$2
    shift 2
    mkdir -p "$tree${path%/*}"
    "$@" >"$tree$path" || die "$path could not be made"
    chmod "$mode" "$tree$path"
    printf '%s\n' "$path" >>"$stage/files"
}

# --- the manifest -----------------------------------------------------------------------------------------------------
#
# A line is a word and the rest:
#     file PATH              a file
#     settings SUM SIZE PATH the settings file as it was made: cksum tells whether somebody changed it
#     dir PATH               a directory that was not there before

# listed WORD: what the manifest has under that word.
listed() {
    [ ! -f "$destdir$manifest" ] || sed -n "s/^$1 //p" "$destdir$manifest"
}

# Whether a manifest may speak of this path: root does not remove what somebody else wrote into it.
is_within() {
    case $1 in
    */../* | */..) false ;;
    "$prefix"/* | "$prefix" | /etc/default/balancer | /etc/balancer/balancer.toml.example) true ;;
    *) false ;;
    esac
}

# The same of a directory: one above the prefix may have been missing as well.
is_within_or_above() {
    case $prefix/:$settings:$example in
    "$1"/* | *:"$1"/*) true ;;
    *) is_within "$1" ;;
    esac
}

# Adds the directories above PATH that are missing to $stage/dirs.
note_missing_directories() {
    above=${1%/*}
    while [ -n "$above" ] && [ ! -d "$destdir$above" ]; do
        printf '%s\n' "$above" >>"$stage/dirs"
        above=${above%/*}
    done
}

# --- installing -------------------------------------------------------------------------------------------------------

install_() {
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    trap 'exit 1' HUP INT TERM
    if [ -n "$from" ]; then
        from=$(absolute "$from")
    else
        build release release
    fi
    if [ "$root" = yes ]; then listen=0.0.0.0:80; else listen=127.0.0.1:8080; fi
    prepare

    # Before anything is changed: is all that is in the way our own?
    listed file >"$stage/before"
    while IFS= read -r path; do
        if [ -d "$destdir$path" ]; then
            die "$destdir$path is a directory; move it away"
        elif { [ -e "$destdir$path" ] || [ -L "$destdir$path" ]; } && ! grep -Fqx -- "$path" "$stage/before"; then
            die "$destdir$path is there and is not from this script; move it away, or give another --prefix"
        fi
    done <"$stage/files"
    if [ "$systemd" = yes ] && [ "$root" = yes ] && [ -z "$destdir" ]; then
        make_user
    fi

    listed dir >"$stage/dirs"
    listed settings >"$stage/settings"
    while IFS= read -r path; do note_missing_directories "$path"; done <"$stage/files"
    note_missing_directories "$manifest"
    if [ "$systemd" = yes ] && [ ! -e "$destdir$settings" ]; then
        note_missing_directories "$settings"
        write_settings >"$stage/new-settings"
        printf '%s %s\n' "$(cksum <"$stage/new-settings")" "$settings" >"$stage/settings"
    fi
    sort -u -o "$stage/dirs" "$stage/dirs"

    sort -u "$stage/before" "$stage/files" >"$stage/both"
    write_manifest "$stage/both"
    changed=0
    while IFS= read -r path; do place "$path"; done <"$stage/files"
    if [ -f "$stage/new-settings" ]; then
        mkdir -p "$destdir${settings%/*}"
        put "$stage/new-settings" "$destdir$settings" 644
        say "installed $destdir$settings"
    fi
    while IFS= read -r path; do
        if ! grep -Fqx -- "$path" "$stage/files" && is_within "$path"; then
            rm -f -- "$destdir$path"
            say "removed $destdir$path, which is no longer part of it"
        fi
    done <"$stage/before"
    write_manifest "$stage/files"
    [ "$changed" -gt 0 ] || say "nothing has changed below $destdir$prefix"
    say_what_is_next
}

write_manifest() {
    {
        say '# What install.sh put here; install.sh --uninstall goes by it.'
        sed 's/^/file /' "$1"
        sed 's/^/settings /' "$stage/settings"
        sed 's/^/dir /' "$stage/dirs"
    } >"$stage/manifest"
    mkdir -p "$destdir${manifest%/*}"
    put "$stage/manifest" "$destdir$manifest" 644
}

# place PATH: from the stage to its place, if it is not there as it is to be.
place() {
    if cmp -s "$tree$1" "$destdir$1" && [ ! -L "$destdir$1" ] &&
        [ "$(stat -c %a "$tree$1")" = "$(stat -c %a "$destdir$1")" ]; then
        return
    fi
    mkdir -p "$destdir${1%/*}"
    put "$tree$1" "$destdir$1" "$(stat -c %a "$tree$1")"
    changed=$((changed + 1))
    say "installed $destdir$1"
}

# put FILE PATH MODE: by a rename, so that a program that runs goes on with its old file.
put() {
    cp -- "$1" "$2.new.$$"
    chmod "$3" "$2.new.$$"
    mv -f -- "$2.new.$$" "$2"
}

make_user() {
    if ! getent group "$service_group" >/dev/null && [ "$service_group" != "$service_user" ]; then
        die "there is no group $service_group: make it with \`groupadd --system $service_group\`, or leave --group out"
    fi
    if getent passwd "$service_user" >/dev/null; then
        getent group "$service_group" >/dev/null ||
            die "user $service_user has no group of its name: give --group NAME"
        return
    fi
    command -v useradd >/dev/null 2>&1 || die 'useradd is missing: apt-get install passwd; or give --no-systemd'
    if getent group "$service_group" >/dev/null; then
        set -- --gid "$service_group"
    else
        set -- --user-group
    fi
    nologin=$(command -v nologin || say /usr/sbin/nologin)
    useradd --system "$@" --home-dir /nonexistent --no-create-home --shell "$nologin" --comment "$USER_MARK" "$service_user"
    say "made the system user $service_user"
}

say_what_is_next() {
    if [ "$root" = yes ]; then systemctl_name='systemctl'; else systemctl_name='systemctl --user'; fi
    if [ -z "$destdir" ] && [ "$(command -v balancerctl || :)" != "$prefix/bin/balancerctl" ]; then
        say "$prefix/bin is not where your shell looks first: call the programs by their path, or change PATH"
    fi
    if [ "$systemd" = no ] || [ -n "$destdir" ]; then
        [ -n "$destdir" ] || say "next: $prefix/bin/balancerctl start 0.0.0.0 8080"
        return
    fi
    if systemd_runs; then
        systemctl_ daemon-reload || warn "$systemctl_name daemon-reload failed; run it by hand"
    else
        say "systemd does not run here: the unit is in place, and without it there is \`balancerctl start ADDR PORT\`"
    fi
    if ! unit_is_found; then
        say "systemd does not look into ${unit%/*}: $systemctl_name link '$unit'"
    fi
    if systemd_runs && systemctl_ is-active --quiet balancer.service; then
        say "the balancer that runs is still the one from before: $systemctl_name restart balancer, when its sessions may end"
    else
        say "next: write $config (beside it is an example), or look at $settings; then: $systemctl_name enable --now balancer"
    fi
    if [ "$root" = yes ] && [ "$service_group" != root ]; then
        say "who may use balancerctl besides root: adduser NAME $service_group"
    fi
}

# --- removing ---------------------------------------------------------------------------------------------------------

uninstall() {
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    [ "$purge" = no ] || refuse_if_state_is_in_use
    installed=no
    if ! [ -f "$destdir$manifest" ]; then
        warn "nothing is installed below $destdir$prefix: $destdir$manifest is not there"
    else
        installed=yes
        refuse_if_in_service
        remove_files
    fi
    if [ "$purge" = yes ] && [ -z "$destdir" ]; then
        purge_
    elif [ -z "$destdir" ] && [ -d "$state" ] && [ "$installed" = yes ] && state_is_ours; then
        say "kept $state; --uninstall --purge removes it"
    fi
}

refuse_if_in_service() {
    listed file | grep -Fqx -- "$unit" || return 0
    systemd_runs || return 0
    [ "$(systemctl_ show --property=FragmentPath --value balancer.service 2>/dev/null)" = "$unit" ] || return 0
    if systemctl_ is-active --quiet balancer.service || systemctl_ is-enabled --quiet balancer.service 2>/dev/null; then
        name=systemctl
        [ "$root" = yes ] || name='systemctl --user'
        die "the service is in use; end it first: $name disable --now balancer"
    fi
}

refuse_if_state_is_in_use() {
    command -v flock >/dev/null 2>&1 || return 0
    for lock in "$state"/*.lock; do
        if [ -f "$lock" ] && ! flock -n "$lock" true; then
            die "a balancer runs with its state in $state; stop it first: balancerctl stop"
        fi
    done
}

remove_files() {
    listed file >"$stage/files"
    listed settings >"$stage/settings"
    listed dir >"$stage/dirs"
    sed 's/^[0-9]* [0-9]* //' "$stage/settings" | cat "$stage/files" - >"$stage/all"
    while IFS= read -r path; do
        is_within "$path" || die "the manifest names $path, which is not below $prefix; nothing is removed"
    done <"$stage/all"
    while IFS= read -r path; do
        is_within_or_above "$path" || die "the manifest names $path, which is not below $prefix; nothing is removed"
    done <"$stage/dirs"
    while IFS= read -r path; do
        if [ -e "$destdir$path" ] || [ -L "$destdir$path" ]; then
            rm -f -- "$destdir$path"
            say "removed $destdir$path"
        fi
    done <"$stage/files"
    while read -r sum size path; do
        if [ ! -e "$destdir$path" ]; then
            continue
        elif [ "$(cksum <"$destdir$path")" = "$sum $size" ]; then
            rm -f -- "$destdir$path"
            say "removed $destdir$path"
        elif [ "$purge" = no ]; then
            say "kept $destdir$path, which was changed; --uninstall --purge removes it"
        fi
    done <"$stage/settings"
    # Its settings file goes before the directories do, so that they are empty.
    [ "$purge" = no ] || remove_settings
    rm -f -- "$destdir$manifest"
    sort -r "$stage/dirs" | while IFS= read -r path; do
        rmdir -- "$destdir$path" 2>/dev/null || :
    done
    ! systemd_runs || systemctl_ daemon-reload || :
}

remove_settings() {
    if [ -f "$destdir$settings" ] && [ "$(head -n 1 "$destdir$settings")" = "$SETTINGS_MARK" ]; then
        rm -f -- "$destdir$settings"
        say "removed $destdir$settings"
    fi
}

# Where else than below this prefix is an installation that has its state in $state, too? Prints that prefix.
other_installation() {
    for other in /usr /usr/local "${HOME:-/nonexistent}/.local"; do
        if [ "$other" != "$prefix" ] && [ -f "$other/share/balancer/manifest" ]; then
            printf '%s\n' "$other"
            return
        fi
    done
    false
}

# Whether nothing speaks against the state being that of the installation that was removed: the state is that of the
# machine, or of the person, and below another prefix than the usual one nobody can tell whose it is.
state_is_ours() {
    case $root$prefix in
    yes/usr | yes/usr/local) ;;
    no"${HOME:-/nonexistent}/.local") ;;
    *) return 1 ;;
    esac
    ! other_installation >/dev/null
}

purge_() {
    remove_settings
    if other=$(other_installation); then
        say "kept $state: there is another installation in $other"
        return
    fi
    if [ -d "$state" ]; then
        rm -rf -- "$state"
        say "removed $state"
    fi
    if [ "$root" = yes ]; then
        # A user of another name was given with --user, at the installation and now again.
        comment=$(getent passwd "$service_user" | cut -d: -f5 || :)
        if [ "$comment" = "$USER_MARK" ]; then
            userdel "$service_user" && say "removed the user $service_user"
        fi
    fi
}

# ----------------------------------------------------------------------------------------------------------------------

case $action in
demo)
    build dev debug
    exec "$from/balancerctl" demo
    ;;
install) install_ ;;
uninstall) uninstall ;;
esac
