# Prints every process that runs on our interpreter: the very file, by device and inode, so that a container with
# an agent of its own is not meant; or one of this root whose file an upgrade has replaced under it.
ours() {
    for directory in /proc/[0-9]*; do
        if [ "$directory/exe" -ef "$python" ]; then
            echo "${directory#/proc/}"
        elif [ "$(readlink "$directory/exe" 2> /dev/null)" = "$python (deleted)" ] && [ "$directory/root" -ef / ]; then
            echo "${directory#/proc/}"
        fi
    done
}

# Prints those of them whose parent is none of them: masters, and commands of operators.
heads() {
    all=" $(ours | tr '\n' ' ')"
    for pid in $all; do
        parent=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status" 2> /dev/null) || continue
        case "$all" in
        *" $parent "*) ;;
        *) echo "$pid" ;;
        esac
    done
}

signal() { # signal, pids
    name=$1
    shift
    for pid in "$@"; do
        # It may have ended meanwhile.
        kill -s "$name" "$pid" 2> /dev/null || true
    done
}

# Ends every agent that is still there after systemd has stopped its own: in order first (it takes up to 15 s), then
# the other way. Then what no agent can do for itself: nobody can remove the cgroup that he sits in.
end_all() {
    [ -e "$python" ] || return 0
    # shellcheck disable=SC2046
    signal TERM $(heads)
    tries=0
    while [ -n "$(ours)" ] && [ "$tries" -lt 150 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    # shellcheck disable=SC2046
    signal KILL $(ours)
    # External workers go with it. In an image that is being built there are no cgroups.
    grep -q ' cgroup2\? ' /proc/mounts 2> /dev/null || return 0
    within 30 $opt/bin/garrisond --cleanup || say "cgroups may be left; a reboot removes them" >&2
}

# Without it systemd keeps the empty slice, and its cgroups, until the next boot.
leave_slice() {
    if systemd_runs; then
        within 30 systemctl stop garrison.slice > /dev/null 2>&1 || true
    fi
}
