#!/bin/sh
# Tests install.sh from outside: what it puts where, twice the same, and that nothing of it is left.
#
#     packaging/test-install.sh DIRECTORY-OF-THE-PROGRAMS
#
# As root it also tests the installation for the machine, with its user and state; that part is left out where a
# balancer is installed or has state already, because the test would remove it.
set -eu

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PROGRAMS=$(CDPATH='' cd -- "${1:?the directory of balancerd and balancerctl}" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$work"
# A copy, because another user may not be able to read the checkout.
mkdir -p "$work/programs" "$work/source/packaging"
cp "$PROGRAMS/balancerd" "$PROGRAMS/balancerctl" "$work/programs/"
cp "$HERE"/*.md "$HERE/install.sh" "$HERE/Cargo.toml" "$HERE/LICENSE" "$work/source/"
cp -R "$HERE/docs" "$work/source/"
mkdir "$work/source/bench"
cp "$HERE/bench/README.md" "$work/source/bench/"
# What is to be installed of the programs: they, without their debug information.
mkdir "$work/stripped"
for program in balancerd balancerctl; do strip -o "$work/stripped/$program" "$PROGRAMS/$program"; done
cp "$HERE/packaging/balancer.toml" "$work/source/packaging/"
chmod -R a+rX "$work/programs" "$work/source"

fail() {
    printf 'test-install.sh: %s\n' "$*" >&2
    exit 1
}

fact() {
    printf 'ok: %s\n' "$*"
}

# snapshot NAME DIRECTORY...: every path, with kind, mode, owner, size and time.
snapshot() {
    name=$1
    shift
    # A directory's own time and size change when something comes and goes in it.
    find "$@" \( -type d -printf '%p %y %m %u\n' -o -printf '%p %y %m %u %s %T@ %l\n' \) 2>/dev/null | sort >"$work/$name"
}

same() {
    diff -u "$work/$1" "$work/$2" || fail "$3"
}

# refuses TEXT COMMAND...: it fails and says that.
refuses() {
    wanted=$1
    shift
    if "$@" >"$work/said" 2>&1; then fail "this was to be refused: $*"; fi
    grep -Fq -- "$wanted" "$work/said" || fail "$* did not say '$wanted' but: $(cat "$work/said")"
}

# --- somebody else than root, and then root below a directory ---------------------------------------------------------

# round AS...: a whole life below one home, run by the command prefix AS.
round() {
    home=$work/home
    mkdir "$home"
    [ "$(id -u)" -ne 0 ] || [ "$1" = env ] || chown 65534:65534 "$home"
    set -- "$@" env -i HOME="$home" PATH="$PATH" sh "$work/source/install.sh"
    prefix=$home/"a prefix"

    snapshot before "$home"
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    dest=$home/root
    for path in bin/balancerd bin/balancerctl share/man/man1/balancerctl.1 share/man/man1/balancerctl-add.1 \
        share/bash-completion/completions/balancerctl share/zsh/site-functions/_balancerctl \
        share/fish/vendor_completions.d/balancerctl.fish etc/default/balancer \
        etc/balancer/balancer.toml.example share/balancer/manifest share/doc/balancer/docs/operating.md; do
        [ -f "$dest$prefix/$path" ] || fail "$path is missing"
    done
    "$dest$prefix/bin/balancerctl" --version >/dev/null
    "$dest$prefix/bin/balancerd" --check "$dest$prefix/etc/balancer/balancer.toml.example" >/dev/null
    snapshot first "$home"
    "$@" --prefix="$prefix/" --from "$work/programs" --destdir "$home/root" >"$work/said"
    grep -q '^nothing has changed' "$work/said" || fail "a second time changed something: $(cat "$work/said")"
    snapshot second "$home"
    grep -v manifest "$work/first" >"$work/first-files"
    grep -v manifest "$work/second" >"$work/second-files"
    same first-files second-files 'a second installation changed something'

    # Fewer files the next time: the unit goes, and everything else stays.
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" --no-systemd >"$work/said"
    [ -z "$(find "$dest" -name balancer.service)" ] || fail 'the unit is still there after --no-systemd'
    # A program in use is replaced by a rename: the old one stays what it is for whoever has it open.
    exec 3<"$dest$prefix/bin/balancerctl"
    printf 'another version' >"$dest$prefix/bin/balancerctl.tmp"
    chmod 755 "$dest$prefix/bin/balancerctl.tmp"
    [ "$(id -u)" -ne 0 ] || chown --reference="$home" "$dest$prefix/bin/balancerctl.tmp"
    mv "$dest$prefix/bin/balancerctl.tmp" "$dest$prefix/bin/balancerctl"
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    cmp "$work/stripped/balancerctl" "$dest$prefix/bin/balancerctl" || fail 'a changed program was not replaced'
    cmp "$work/stripped/balancerctl" - <&3 || fail 'a program that was open has changed'
    exec 3<&-
    # Every link of the documents leads to something that is installed.
    documents=$dest$prefix/share/doc/balancer
    find "$documents" -name '*.md' | while IFS= read -r page; do
        grep -o '](\([^)#:]*\)[^):]*)' "$page" | sed 's/^](\([^)#]*\).*/\1/' | while IFS= read -r link; do
            case $link in
            '' | /*) ;;
            *) [ -e "$(dirname "$page")/$link" ] || printf '%s: %s\n' "${page#"$documents"/}" "$link" ;;
            esac
        done
    done >"$work/dead-links"
    [ ! -s "$work/dead-links" ] || fail "documents name what is not installed: $(cat "$work/dead-links")"

    # The debug information is in files of its own, where it is wanted, and they are those of these programs.
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" --debug-info >"$work/said"
    for program in balancerd balancerctl; do
        "$dest$prefix/bin/$program" --version >/dev/null
        debug=$dest$prefix/bin/.debug/$program.debug
        readelf -S "$debug" 2>/dev/null | grep -q '[.]symtab' || fail "$debug has no symbols"
        ! readelf -S "$dest$prefix/bin/$program" | grep -q '[.]symtab' || fail "$program is not stripped"
        readelf --string-dump=.gnu_debuglink "$dest$prefix/bin/$program" | grep -Fq "$program.debug" ||
            fail "$program does not name its debug information"
    done
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    [ ! -e "$dest$prefix/bin/.debug/balancerd.debug" ] || fail 'debug information is left without --debug-info'

    # Somebody else's file beside ours is not ours, and a configuration is its owner's.
    for path in share/man/man1/mine.1 etc/balancer/balancer.toml; do
        printf 'mine' >"$dest$prefix/$path"
    done
    "$@" --prefix "$prefix" --destdir "$home/root" --uninstall >"$work/said"
    for path in share/man/man1/mine.1 etc/balancer/balancer.toml; do
        [ "$(cat "$dest$prefix/$path")" = mine ] || fail "a file of somebody else is gone: $path"
        rm "$dest$prefix/$path"
    done
    find "$home/root" -depth -type d -exec rmdir {} \;
    snapshot after "$home"
    same before after 'something is left'

    # A changed settings file stays until --purge, and a file in the way stops everything.
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    printf 'BALANCER_LISTEN=127.0.0.1:81\n' >>"$dest$prefix/etc/default/balancer"
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    "$@" --prefix "$prefix" --destdir "$home/root" --uninstall >"$work/said"
    tail -n 1 "$dest$prefix/etc/default/balancer" | grep -q :81 || fail 'changed settings are gone'
    [ "$(find "$home/root" -type f | wc -l)" -eq 1 ] || fail "more is left than the settings: $(find "$home/root" -type f)"
    "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root" >"$work/said"
    tail -n 1 "$dest$prefix/etc/default/balancer" | grep -q :81 || fail 'changed settings were overwritten'
    "$@" --prefix "$prefix" --destdir "$home/root" --uninstall --purge >"$work/said"
    [ -z "$(find "$home/root" -type f)" ] || fail "left after --purge: $(find "$home/root" -type f)"
    rm -rf "$home/root"
    mkdir -p "$home/root$prefix/bin"
    printf 'not ours' >"$home/root$prefix/bin/balancerd"
    [ "$(id -u)" -ne 0 ] || chown -R --reference="$home" "$home/root"
    snapshot before "$home"
    refuses 'is not from this script' "$@" --prefix "$prefix" --from "$work/programs" --destdir "$home/root"
    snapshot after "$home"
    same before after 'a refused installation changed something'
    rm -rf "$home/root"

    # For real, in the usual place.
    snapshot before "$home"
    if [ "$1" != env ]; then
        "$@" --from "$work/programs" >"$work/said"
        "$home/.local/bin/balancerctl" --version >/dev/null || fail 'it does not run from ~/.local'
        grep -q "^ExecStart=\"$home/.local/bin/balancerd\"" "$home/.local/share/systemd/user/balancer.service" ||
            fail 'there is no unit for the user'
        mkdir -p "$home/.local/state/balancer"
        printf 'version = 1\n' >"$home/.local/state/balancer/control.state"
        chown -R --reference="$home" "$home/.local/state" 2>/dev/null || :
        "$@" --uninstall >"$work/said"
        [ -f "$home/.local/state/balancer/control.state" ] || fail 'the state is gone without --purge'
        "$@" --uninstall --purge >"$work/said" 2>&1
        [ ! -e "$home/.local/state/balancer" ] || fail 'the state is there after --purge'
        find "$home/.local" -depth -type d -exec rmdir {} \;
        snapshot after "$home"
        same before after 'something is left of the usual place'
    fi
    rm -rf "$home"
}

if [ "$(id -u)" -eq 0 ]; then
    round setpriv --reuid=65534 --regid=65534 --clear-groups
    fact 'another user than root: installed, again, in part, removed, purged'
    round env
    fact 'root below a directory: the same'
else
    round nice
    fact 'this user: installed, again, in part, removed, purged'
fi

# --- root, for the machine --------------------------------------------------------------------------------------------

machine() {
    snapshot before /usr/local /etc/default /etc/balancer /var/lib /etc/systemd
    getent passwd >"$work/users-before"
    getent group >"$work/groups-before"
    sh "$HERE/install.sh" --from "$work/programs" >"$work/said"
    sh "$HERE/install.sh" --from "$work/programs" >"$work/said"
    grep -q '^nothing has changed' "$work/said" || fail "a second time changed something: $(cat "$work/said")"
    [ "$(getent passwd balancer | cut -d: -f7)" != /bin/sh ] || fail 'the user of the service can log in'
    grep -q '^User=balancer$' /usr/local/lib/systemd/system/balancer.service || fail 'the unit names no user'
    /usr/local/bin/balancerctl --version >/dev/null
    /usr/local/bin/balancerd --check /etc/balancer/balancer.toml.example >/dev/null
    if command -v systemd-analyze >/dev/null 2>&1; then
        systemd-analyze verify --man=no /usr/local/lib/systemd/system/balancer.service >"$work/said" 2>&1 ||
            fail "systemd-analyze verify: $(cat "$work/said")"
        ! grep -F balancer.service "$work/said" || fail 'systemd-analyze verify has something to say'
        fact 'the unit is one that systemd understands'
    fi
    # A balancer as the service would run: that user, the settings' options, with state to be kept.
    install -d -o balancer -g balancer /var/lib/balancer /run/balancer
    as_service='setpriv --reuid=balancer --regid=balancer --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all'
    unit_says() { sed -n "s/^$1=//p" /usr/local/lib/systemd/system/balancer.service; }
    start=$(unit_says ExecStart | sed 's/[$]{BALANCER_LISTEN}/127.0.0.1:0/; s/ [$]BALANCER_OPTIONS//; s/--log journald/--background/')
    reload=$(unit_says ExecReload)
    eval "$as_service $start"
    /usr/local/bin/balancerctl add 192.0.2.1 80 >/dev/null
    refuses 'balancer.toml' eval "$as_service $reload"
    # The file is used once it is there, and a reload ends with what came of it.
    printf '[service.web]\nlisten = "127.0.0.1:0"\npool = "web"\n[pool.web]\n' >/etc/balancer/balancer.toml
    eval "$as_service $reload" >/dev/null
    /usr/local/bin/balancerctl service list | grep -q '^web ' || fail 'the file is not used'
    printf 'nonsense = 1\n' >>/etc/balancer/balancer.toml
    refuses 'nonsense' eval "$as_service $reload"
    /usr/local/bin/balancerctl service list | grep -q '^web ' || fail 'a broken file changed something'
    rm /etc/balancer/balancer.toml
    /usr/local/bin/balancerctl add 192.0.2.1 80 --pool web >/dev/null
    refuses 'a balancer runs' sh "$HERE/install.sh" --uninstall --purge
    /usr/local/bin/balancerctl stop --now >/dev/null
    sh "$HERE/install.sh" --uninstall >"$work/said"
    grep -q 192.0.2.1 /var/lib/balancer/control.state || fail 'the state is gone without --purge'
    sh "$HERE/install.sh" --uninstall --purge >"$work/said" 2>&1
    rm -rf /run/balancer
    snapshot after /usr/local /etc/default /etc/balancer /var/lib /etc/systemd
    same before after 'something is left on the machine'
    getent passwd | diff -u "$work/users-before" - || fail 'the user is left'
    getent group | diff -u "$work/groups-before" - || fail 'the group is left'
    fact 'root for the machine: installed, again, run as the service, removed, purged'
}

if [ "$(id -u)" -ne 0 ]; then
    fact 'not root: the installation for the machine was not tested'
elif [ -e /var/lib/balancer ] || [ -e /run/balancer ] || [ -e /usr/local/share/balancer ] || getent passwd balancer >/dev/null; then
    fact 'a balancer is installed here or has state: the installation for the machine was not tested'
else
    machine
fi

refuses 'is not an option' sh "$HERE/install.sh" --nonsense
refuses 'needs a value' sh "$HERE/install.sh" --prefix
refuses 'goes with --uninstall' sh "$HERE/install.sh" --purge
refuses 'goes with an installation' sh "$HERE/install.sh" --uninstall --debug-info
fact 'mistakes are named'
