# Keeps the running version until the new one has shown that it works. Hard links: it costs no space until files differ,
# and the package manager replaces files, it does not write into them.
keep_running_version() {
    rm -rf --one-file-system "$kept"
    [ -d "$opt" ] || return 0
    if ! keep; then
        rm -rf --one-file-system "$kept"
        say "the running version cannot be kept in $kept, so there would be no way back: not upgraded" >&2
        return 1
    fi
}

keep() {
    mkdir -m 0700 "$kept" || return 1
    if ! systemd_runs; then
        echo none > "$kept/state"
        return
    fi
    state=$(systemctl is-active "$unit" 2> /dev/null) || true
    # activating: it is being started, or systemd waits before it tries again.
    case "$state" in
    active | reloading | activating | failed) ;;
    *) state=inactive ;;
    esac
    mkdir "$kept/opt" "$kept/host" || return 1
    if ! cp -al "$opt/." "$kept/opt/" 2> /dev/null; then
        # Another file system, or one without hard links.
        rm -rf "$kept/opt"
        mkdir "$kept/opt" && cp -a "$opt/." "$kept/opt/" || return 1
    fi
    # Whatever umask this runs under: workers load from there, and they are not root.
    chmod 0755 "$kept/opt" || return 1
    for file in @HOST_FILES@; do
        if [ -e "/$file" ]; then
            mkdir -p "$kept/host/${file%/*}" && cp -a "/$file" "$kept/host/$file" || return 1
        fi
    done
    if [ "$state" != inactive ]; then
        within 30 "$opt/bin/garrison" status --json > "$kept/status.json" 2> /dev/null || rm -f "$kept/status.json"
    fi
    # Last: with it the copy is whole.
    echo "$state" > "$kept/state"
}
