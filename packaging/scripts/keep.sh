# Keeps the running version until the new one has shown that it works. Hard links: it costs no space until files differ,
# and the package manager replaces files, it does not write into them.
keep_running_version() {
    if [ -e "$kept/state" ] && [ -d "$kept/opt" ]; then
        keep_on && return 0
        say "$kept cannot be written: not upgraded" >&2
        return 1
    fi
    rm -rf --one-file-system "$kept"
    [ -d "$opt" ] || return 0
    if ! keep; then
        rm -rf --one-file-system "$kept"
        say "the running version cannot be kept in $kept, so there would be no way back: not upgraded" >&2
        return 1
    fi
}

# An upgrade was cut off (a power cut, a kill) before the new version had shown anything. What stands in its place may be
# half of this and half of that; what is kept is whole, and the last that is known to work.
keep_on() {
    say "an upgrade before this one did not come to its end: what it kept stays what there is to go back to"
    # Whoever takes this upgrade back leaves it for the next one.
    touch "$kept/again" || return 1
    rm -rf --one-file-system "$kept/new" "$kept/refused"
    now=$(agent_state)
    # failed: that may be because of what is half there.
    [ "$now" = failed ] || tell_state "$now" || return 1
}

# In one step: half a word would be no state.
tell_state() {
    echo "$1" > "$kept/state.new" && mv "$kept/state.new" "$kept/state"
}

keep() {
    mkdir -m 0700 "$kept" || return 1
    state=$(agent_state)
    if [ "$state" = none ]; then
        tell_state none
        return
    fi
    mkdir "$kept/opt" "$kept/host" || return 1
    copied=
    if ! cp -al "$opt/." "$kept/opt/" 2> /dev/null; then
        # Another file system, or one without hard links.
        rm -rf "$kept/opt"
        mkdir "$kept/opt" && cp -a "$opt/." "$kept/opt/" || return 1
        copied=-f
    fi
    # Whatever umask this runs under: workers load from there, and they are not root.
    chmod 0755 "$kept/opt" || return 1
    for file in @HOST_FILES@; do
        if [ -e "/$file" ]; then
            mkdir -p "$kept/host/${file%/*}" && cp -a "/$file" "$kept/host/$file" || return 1
        fi
    done
    if [ "$state" != inactive ]; then
        # shellcheck disable=SC2046
        within 30 "$opt/bin/garrison" $(configuration) status --json > "$kept/status.json" 2> /dev/null ||
            rm -f "$kept/status.json"
    fi
    # Last: with it the copy is whole, also after a power cut. Links are in the journal with this one file; what was
    # copied is not.
    tell_state "$state" || return 1
    sync $copied "$kept/state" 2> /dev/null || sync
}
