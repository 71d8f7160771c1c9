# Seconds that the new version has to start, and as many again to bring every worker back that ran before.
takeover_seconds=${GARRISON_TAKEOVER_SECONDS:-45}

# After a version was put back, the tree holds files that the package manager does not know. Those of ours that are not
# in the new version's list go now.
prune() {
    [ -e "$refused" ] && [ -s "$opt/MANIFEST" ] || return 0
    (
        cd "$opt" || exit 0
        find . ! -type d ! -name MANIFEST | LC_ALL=C sort > "$kept/found"
        cut -c 67- MANIFEST | LC_ALL=C sort > "$kept/listed"
        LC_ALL=C comm -23 "$kept/found" "$kept/listed" | while IFS= read -r file; do rm -f -- "$file"; done
        find . -depth -type d -empty -exec rmdir {} +
    )
}

# Why this version cannot take over, found before the running one is touched; nothing where it can.
objection() {
    if ! told=$(within 60 "$opt/bin/garrisond" --check 2>&1); then
        echo "garrisond --check fails: $told"
    fi
}

# Restarts, and waits until all is as it was. Prints why it is not, or how long it took.
take_over() {
    begun=$(cut -d ' ' -f 1 /proc/uptime)
    status=0
    within "$takeover_seconds" systemctl restart "$unit" > /dev/null 2>&1 || status=$?
    case "$status" in
    0) ;;
    124 | 137)
        echo "it was not ready after $takeover_seconds s"
        return 1
        ;;
    *)
        echo "it did not start ($(systemctl show -p Result -p ExecMainStatus "$unit" | tr '\n' ' ' | sed 's/ $//'))"
        return 1
        ;;
    esac
    before=
    [ -s "$kept/status.json" ] && before="--before $kept/status.json"
    # shellcheck disable=SC2086
    within $((takeover_seconds + 30)) "$python" -I -m garrison.supervisor.control.takeover \
        --seconds "$takeover_seconds" --since "$begun" $before 2>&1
}

put_back() { # why
    why=$1
    if [ ! -e "$opt" ] || { [ ! -L "$opt" ] && mv "$opt" "$kept/new" 2> /dev/null; }; then
        mv "$kept/opt" "$opt"
    else
        # A link to somewhere else, or a file system of its own: it stays, with the old content.
        find "$opt/" -xdev -mindepth 1 -delete
        cp -a "$kept/opt/." "$opt/"
    fi
    for file in @HOST_FILES@; do
        if [ -e "$kept/host/$file" ]; then
            cp -a "$kept/host/$file" "/$file"
        fi
    done
    printf '%s\n' "@VERSION@" "$why" > "$refused"
    rm -rf --one-file-system "$kept"
    systemctl --system daemon-reload > /dev/null || true
}

# The whole upgrade after the files are there. Ends with 1 where the version before was put back.
finish_upgrade() {
    state=$(cat "$kept/state")
    prune
    rm -f "$refused"
    case "$state" in
    none)
        say "systemd does not run here: whoever runs an agent restarts it to take version @VERSION@"
        rm -rf --one-file-system "$kept"
        return 0
        ;;
    esac
    systemctl --system daemon-reload > /dev/null || true
    case "$state" in
    inactive)
        say "the agent was not running, so it was not started: \`systemctl start garrison\`"
        rm -rf --one-file-system "$kept"
        return 0
        ;;
    failed)
        # There is nothing to go back to: the version before did not run either.
        rm -rf --one-file-system "$kept"
        systemctl reset-failed "$unit" > /dev/null 2>&1 || true
        within 120 systemctl restart "$unit" ||
            say "the agent does not start, as before: \`systemctl status garrison\` and \`garrison doctor\` say why"
        return 0
        ;;
    esac
    why=$(objection)
    if [ -n "$why" ]; then
        put_back "$why"
        # It reads the note and tells its status of it.
        within 30 systemctl reload "$unit" > /dev/null 2>&1 || true
        say "version @VERSION@ cannot take over here, the version before runs on without a gap: $why" >&2
        return 1
    fi
    if told=$(take_over); then
        say "version @VERSION@ has taken over; $told"
        rm -rf --one-file-system "$kept"
        return 0
    fi
    put_back "$told"
    say "version @VERSION@ is not healthy: $told" >&2
    systemctl reset-failed "$unit" > /dev/null 2>&1 || true
    if within 120 systemctl restart "$unit"; then
        say "the version before was put back and runs" >&2
    else
        say "the version before was put back and does not start: \`systemctl status garrison\` says why" >&2
    fi
    return 1
}
