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

# The configuration that the unit names, as an option: a drop-in may start the agent with another than the usual one.
configuration() {
    systemctl show -p ExecStart "$unit" 2> /dev/null |
        sed -n 's/.* argv\[\]=[^;]* --config[= ]\([^ ;]*\).*/--config \1/p'
}

# How the agent is, in a word: active (or about to be), failed, inactive; none where systemd does not run.
agent_state() {
    if ! systemd_runs; then
        echo none
        return
    fi
    now=$(systemctl is-active "$unit" 2> /dev/null) || true
    case "$now" in
    # activating: it is being started, or systemd waits before it tries again.
    active | reloading | activating) echo active ;;
    failed) echo failed ;;
    *) echo inactive ;;
    esac
}

# What waits for something has an end: a hung agent must not hang the package manager.
within() { # seconds, command...
    if command -v timeout > /dev/null; then
        timeout -k 5 "$@"
    else
        shift
        "$@"
    fi
}
