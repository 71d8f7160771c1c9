# The user of those workers that need no rights. systemd-sysusers makes it where there is one, and at boot.
make_user() {
    if command -v systemd-sysusers > /dev/null && systemd-sysusers garrison.conf > /dev/null 2>&1; then
        return 0
    fi
    # Not through the name service, which may be away or slow.
    if grep -q '^@USER@:' /etc/passwd; then
        return 0
    fi
    shell=/usr/sbin/nologin
    [ -x "$shell" ] || shell=/sbin/nologin
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell "$shell" \
        --comment "Garrison detection workers" @USER@ ||
        say "the user @USER@ cannot be made: workers that would run as it do not start"
}
