"""The presets: where attackers make themselves a home, and where web servers look. A directory covers all below it.

``~`` stands for the home of each user in /etc/passwd.
"""

from __future__ import annotations

from typing import Final

from garrison.workers.files import rules
from garrison.workers.files.rules import Rule

PERSISTENCE: Final[tuple[tuple[Rule, tuple[str, ...]], ...]] = (
    (rules.LD_PRELOAD, ("/etc/ld.so.preload",)),
    (rules.LD_CONFIG, ("/etc/ld.so.conf", "/etc/ld.so.conf.d")),
    (
        rules.CRON,
        (
            *("/etc/crontab", "/etc/cron.d", "/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly"),
            *("/etc/cron.monthly", "/etc/anacrontab", "/var/spool/cron", "/var/spool/at"),
        ),
    ),
    (
        rules.SYSTEMD,
        (
            *("/etc/systemd", "/usr/lib/systemd", "/lib/systemd", "/usr/local/lib/systemd", "/run/systemd/system"),
            *("/etc/xdg/systemd", "~/.config/systemd", "~/.local/share/systemd"),
        ),
    ),
    (rules.INIT, ("/etc/rc.local", "/etc/rc.d", "/etc/rc?.d", "/etc/init.d", "/etc/inittab", "/etc/init")),
    (
        rules.PROFILE,
        (
            *("/etc/profile", "/etc/profile.d", "/etc/bash.bashrc", "/etc/bashrc", "/etc/environment", "/etc/zsh"),
            *("/etc/zshrc", "/etc/zprofile", "/etc/zshenv", "/etc/csh.cshrc", "/etc/csh.login", "/etc/skel"),
            *("~/.bashrc", "~/.bash_profile", "~/.bash_login", "~/.bash_logout", "~/.profile", "~/.zshrc"),
            *("~/.zprofile", "~/.zshenv", "~/.zlogin", "~/.cshrc", "~/.tcshrc", "~/.config/fish/config.fish"),
        ),
    ),
    (
        rules.AUTHORIZED_KEYS,
        ("~/.ssh/authorized_keys", "~/.ssh/authorized_keys2", "~/.ssh/rc", "~/.ssh/environment"),
    ),
    (rules.SSH_CONFIG, ("/etc/ssh", "~/.ssh/config")),
    (rules.SUDOERS, ("/etc/sudoers", "/etc/sudoers.d", "/etc/doas.conf")),
    (rules.PAM, ("/etc/pam.d", "/etc/pam.conf", "/etc/security", "/usr/lib/*/security", "/usr/lib64/security")),
    (rules.ACCOUNTS, ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow")),
    (
        rules.KERNEL_MODULES,
        (
            *("/etc/modules", "/etc/modules-load.d", "/etc/modprobe.d", "/etc/modprobe.conf"),
            *("/usr/lib/modules-load.d", "/usr/lib/modprobe.d"),
        ),
    ),
    (rules.UDEV, ("/etc/udev", "/usr/lib/udev/rules.d", "/run/udev/rules.d")),
    (rules.AUTOSTART, ("/etc/xdg/autostart", "~/.config/autostart")),
    (
        rules.PACKAGE_HOOKS,
        (
            "/etc/apt/apt.conf",
            "/etc/apt/apt.conf.d",
            "/etc/dpkg/dpkg.cfg.d",
            "/etc/dnf/plugins",
            "/etc/yum/pluginconf.d",
        ),
    ),
)

WEB_ROOTS: Final[tuple[str, ...]] = (
    *("/var/www", "/srv/www", "/srv/http", "/usr/local/www", "/usr/share/nginx/html", "/usr/share/nginx/www"),
    *("/usr/local/nginx/html", "/usr/local/openresty/nginx/html", "/usr/local/apache2/htdocs", "/opt/lampp/htdocs"),
    *("/opt/bitnami/*/htdocs", "/var/lib/tomcat*/webapps", "/usr/share/tomcat*/webapps", "/opt/tomcat/webapps"),
    *("/usr/local/tomcat/webapps", "~/public_html"),
)
