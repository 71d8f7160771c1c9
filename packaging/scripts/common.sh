# The part that every maintainer script has. Plain shell, of the host the usual small programs only: nothing below
# /opt/garrison is taken for granted, since these run before it is there, after it went, and when it is broken.
unit=garrison.service
opt=/opt/garrison
python=$opt/bin/python3
# The version that ran before, while an upgrade is under way: hard links to its files, its unit, its last status.
kept=/opt/.garrison-before
# In a tree that was put back: which version was refused, and why.
refused=$opt/.refused

say() { echo "garrison: $*"; }

systemd_runs() { [ -d /run/systemd/system ]; }

# What waits for something has an end: a hung agent must not hang the package manager.
within() { # seconds, command...
    if command -v timeout > /dev/null; then
        timeout -k 5 "$@"
    else
        shift
        "$@"
    fi
}
