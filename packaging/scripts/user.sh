# The user of those workers that need no rights. systemd-sysusers makes it where there is one, and at boot. Both programs ask
# the name service whether somebody else has it, which may be away or slow; the agent itself reads /etc/passwd alone.
make_user() {
    if command -v systemd-sysusers > /dev/null; then
        within 60 systemd-sysusers garrison.conf > /dev/null 2>&1 || true
    fi
    if grep -q '^@USER@:' /etc/passwd; then
        return 0
    fi
    shell=/usr/sbin/nologin
    [ -x "$shell" ] || shell=/sbin/nologin
    within 60 useradd --system --user-group --no-create-home --home-dir /nonexistent --shell "$shell" \
        --comment "Garrison detection workers" @USER@ ||
        say "the user @USER@ cannot be made in /etc/passwd: workers stay root, without its capabilities"
}
