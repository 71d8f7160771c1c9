# Seconds that the new version has to start, and as many again to bring every worker back that ran before.
takeover_seconds=${GARRISON_TAKEOVER_SECONDS:-45}

# After a version was put back, the tree holds files that the package manager does not know; after one that was cut off,
# maybe its own temporary ones. Those of ours that are not in the new version's list go now.
prune() {
    [ -e "$refused" ] || [ -e "$kept/again" ] || return 0
    [ -s "$opt/MANIFEST" ] || return 0
    (
        cd "$opt" || exit 0
        # On a full disk a list is cut short, and then all that it lacks would go.
        find . ! -type d ! -name MANIFEST | LC_ALL=C sort > "$kept/found" || exit 0
        cut -c 67- MANIFEST | LC_ALL=C sort > "$kept/listed" || exit 0
        LC_ALL=C comm -23 "$kept/found" "$kept/listed" | while IFS= read -r file; do rm -f -- "$file"; done
        find . -depth -type d -empty -exec rmdir {} +
    )
}

# Why this version cannot take over, found before the running one is touched; nothing where it can.
objection() {
    # shellcheck disable=SC2046
    if ! told=$(within 60 "$opt/bin/garrisond" $(configuration) --check 2>&1); then
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
    # shellcheck disable=SC2046,SC2086
    within $((takeover_seconds + 30)) "$python" -I -m garrison.supervisor.control.takeover \
        $(configuration) --seconds "$takeover_seconds" --since "$begun" $before 2>&1
}

# Puts the version before back. May be cut off anywhere and be begun again: what is kept goes last, and by a rename. With
# a full disk too: where both are on one file system it needs no space but for the note.
put_back() { # why
    [ -e "$kept/refused" ] || printf '%s\n' "@VERSION@" "$1" > "$kept/refused" || true
    # Not there: this was cut off after it.
    if [ -d "$kept/opt" ]; then
        rm -rf --one-file-system "$kept/new"
        if [ ! -e "$opt" ] || { [ ! -L "$opt" ] && mv "$opt" "$kept/new" 2> /dev/null; }; then
            mv "$kept/opt" "$opt" || return 1
        else
            # A link to somewhere else, or a file system of its own: it stays, with the old content.
            find "$opt/" -xdev -mindepth 1 -delete && cp -a "$kept/opt/." "$opt/" || return 1
        fi
    fi
    rm -rf --one-file-system "$kept/new"
    # On a disk that was full until now.
    [ -s "$kept/refused" ] || printf '%s\n' "@VERSION@" "$1" > "$kept/refused" || true
    for file in @HOST_FILES@; do
        if [ -e "$kept/host/$file" ]; then
            rm -f "/$file.garrison"
            ln "$kept/host/$file" "/$file.garrison" 2> /dev/null || cp -a "$kept/host/$file" "/$file.garrison" || return 1
            mv "/$file.garrison" "/$file" || return 1
        fi
    done
    cp "$kept/refused" "$refused" || true
    systemctl --system daemon-reload > /dev/null || true
}

# Everything back, and the version before in service again.
go_back() { # restart or reload, why
    whole=yes
    put_back "$2" || whole=
    if [ "$1" = reload ]; then
        # It has never stopped. It reads the note and tells its status of it.
        within 30 systemctl reload "$unit" > /dev/null 2>&1 || true
    else
        systemctl reset-failed "$unit" > /dev/null 2>&1 || true
        if within 120 systemctl restart "$unit"; then
            say "the version before was put back and runs" >&2
        else
            say "the version before was put back and does not start: \`systemctl status garrison\` says why" >&2
        fi
    fi
    if [ -n "$whole" ]; then
        rm -rf --one-file-system "$kept"
    else
        say "not all of the version before could be put back, it is still in $kept: make room, then run this again" >&2
    fi
}

# The whole upgrade after the files are there. Ends with 1 where the version before was put back.
finish_upgrade() {
    state=$(cat "$kept/state")
    if [ -e "$kept/refused" ]; then
        say "putting the version before back was cut off; it goes on" >&2
        go_back restart ""
        return 1
    fi
    prune
    rm -f "$refused"
    if [ "$state" = none ]; then
        say "systemd does not run here: whoever runs an agent restarts it to take version @VERSION@"
        rm -rf --one-file-system "$kept"
        return 0
    fi
    systemctl --system daemon-reload > /dev/null || true
    # Somebody has stopped it meanwhile: other packages may have taken their time.
    [ "$(agent_state)" != inactive ] || state=inactive
    case "$state,$(systemctl is-enabled "$unit" 2> /dev/null)" in
    *,masked*)
        say "the unit is masked, so the agent was neither started nor restarted: \`systemctl unmask garrison\`"
        rm -rf --one-file-system "$kept"
        return 0
        ;;
    inactive,* | failed,disabled)
        say "the agent was not running, so it was not started: \`systemctl start garrison\`"
        rm -rf --one-file-system "$kept"
        return 0
        ;;
    failed,*)
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
        say "version @VERSION@ cannot take over here, the version before runs on without a gap: $why" >&2
        go_back reload "$why"
        return 1
    fi
    if told=$(take_over); then
        say "version @VERSION@ has taken over; $told"
        rm -rf --one-file-system "$kept"
        return 0
    fi
    say "version @VERSION@ is not healthy: $told" >&2
    go_back restart "$told"
    return 1
}
