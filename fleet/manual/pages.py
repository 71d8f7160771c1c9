"""The three manual pages: garrisond(8), garrison(1) and garrison.toml(5)."""

from __future__ import annotations

from typing import Final

from garrison.fleet.cli.exits import MEANINGS
from garrison.fleet.cli.reference import INTRODUCTION
from garrison.fleet.manual.commandline import HELP, Command, Option, master, operator
from garrison.fleet.manual.roff import Page, bold, escape, italic
from garrison.supervisor.control.protocol import SOCKET_NAME
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.main import SIGNALS
from garrison.supervisor.settings import Settings, document
from garrison.supervisor.settings.places import Surroundings, resolve
from garrison.supervisor.version import VERSION

_CONFIGURATION: Final = "/etc/garrison/garrison.toml"

_MASTER: Final = """\
`garrisond` is the agent itself. It holds the session with the store, decides which workers run, and sends on what they
report. A small process of its own, the nursery, forks each worker, into a cgroup with hard caps on CPU time and
memory that are read back before any of the worker's code runs. A worker that breaks its budget is throttled, then
stopped, and tried again after a while; the others go on. Nothing that it starts survives it.

Under systemd it runs as `garrison.service`: it says when it is ready and that it goes round, and gets a part of the
cgroup tree of its own. Without systemd any supervisor that keeps a program in the foreground will do.

All workers of a host are dead while the killswitch is engaged: by a key of the store, by `garrison kill`, or by the
file of `agent.killswitch_file`. It survives restarts of the agent and of the host. What the agent does besides is
asked and told with garrison(1); what it reads at its start is in garrison.toml(5).
"""


def pages(date: str = "") -> dict[str, str]:
    """Return each page by its file name, such as ``garrison.1``.

    Args:
        date: The day in ISO form that they bear; empty: none.
    """
    return {"garrison.1": _operator(date), "garrison.toml.5": _configuration(date), "garrisond.8": _master(date)}


def _begin(name: str, chapter: int, summary: str, date: str, origin: str) -> Page:
    return Page(name, chapter, summary, source=f"Garrison {VERSION}", date=date, origin=origin)


def _master(date: str) -> str:
    program = master()
    page = _begin("garrisond", 8, program.summary[0].lower() + program.summary[1:], date, "supervisor/main.py")
    page.section("Synopsis")
    page.lines([_synopsis(program)])
    page.section("Description")
    page.markdown(_MASTER)
    page.section("Options")
    _options(page, (HELP, *program.options))
    page.section("Signals")
    for names, effect in SIGNALS.items():
        page.item(bold(names), effect[0].upper() + effect[1:] + ".")
    page.section("Exit status")
    for code in ExitCode:
        page.item(bold(str(int(code))), code.meaning, *([code.remedy] if code else []))
    page.section("Environment")
    page.item(
        ", ".join(map(bold, ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"))),
        "Set by systemd: where to say that the agent is ready, how often to say that it goes round, and whether "
        "standard error is the journal.",
    )
    page.item(
        ", ".join(map(bold, ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"))),
        "Where the folders of an agent that does not run as root are.",
    )
    page.item(bold("SSL_CERT_FILE"), "Authorities for TLS to Kafka where `[sink.kafka]` names none.")
    _files(page, everything=True)
    _see_also(page, "garrison(1)", "garrison.toml(5)", "systemd.service(5)", "cgroups(7)")
    return page.text


def _operator(date: str) -> str:
    program = operator()
    before, usage, after = INTRODUCTION.split("```")
    page = _begin("garrison", 1, program.summary[0].lower() + program.summary[1:], date, "fleet/cli/")
    page.section("Synopsis")
    page.lines([_usage(line) for line in usage.strip().splitlines()])
    page.section("Description")
    page.markdown(before)
    page.markdown(after)
    page.section("Options")
    _options(page, (HELP, *program.options))
    page.section("Commands")
    for command in program.below:
        if command.path and not command.commands:
            _command(page, command)
    page.section("Exit status")
    for code, meaning in MEANINGS.items():
        page.item(bold(str(code)), meaning)
    page.section("Environment")
    page.item(bold("NO_COLOR"), "Set to anything: no colours on a terminal either.")
    for variable, option in _variables(program).items():
        page.item(bold(variable), f"Stands in for `{option}` of `garrison fleet`, as it does for etcdctl.")
    _files(page, everything=False)
    _see_also(page, "garrisond(8)", "garrison.toml(5)")
    return page.text


def _configuration(date: str) -> str:
    page = _begin("garrison.toml", 5, "what garrisond reads at its start", date, "supervisor/settings/schema.py")
    page.section("Synopsis")
    page.lines([bold(_CONFIGURATION)])
    page.section("Description")
    page.markdown(document.INTRODUCTION)
    page.section("Settings")
    for section in document.sections():
        page.subsection(f"[{section.key}]")
        for paragraph in section.paragraphs:
            page.markdown(paragraph)
        for row in section.rows:
            facts = [f"Type: {row.type}."]
            facts += [f"Range: {row.range}."] if row.range else []
            facts += [f"Default: {row.default}."]
            page.item(bold(row.name), row.text, " ".join(facts))
    _files(page, everything=False)
    _see_also(page, "garrisond(8)", "garrison(1)")
    return page.text


def _command(page: Page, command: Command) -> None:
    words = ["garrison", command.path, "[OPTIONS]" if command.options else "", *(a.usage for a in command.arguments)]
    page.subsection(" ".join(filter(None, words)))
    page.markdown(command.help)
    for argument in command.arguments:
        page.item(italic(argument.value.metavar), argument.help)
    _options(page, command.options)


def _options(page: Page, options: tuple[Option, ...]) -> None:
    for option in options:
        tag = ", ".join(map(bold, option.names + option.off))
        if option.value:
            tag += " " + italic(option.value.metavar)
        text = option.help
        if option.value and option.value.choices and "|" not in option.value.metavar:
            missing = [choice for choice in option.value.choices if choice not in text]
            text += f" One of {', '.join(option.value.choices)}." if missing else ""
        page.item(tag, text + (f" Default: `{option.default}`." if option.default else ""))


def _synopsis(program: Command) -> str:
    """Return the usage of a program without commands: each option, those that exclude each other in one bracket."""
    parts = [bold(program.name)]
    choice = [option for option in program.options if program.exclusive & set(option.names)]
    for option in program.options:
        if option not in choice:
            parts.append(f"[{_short(option)}]")
        elif option == choice[0]:
            parts.append("[" + " | ".join(map(_short, choice)) + "]")
    return " ".join(parts)


def _short(option: Option) -> str:
    return bold(option.names[-1]) + (f" {italic(option.value.metavar)}" if option.value else "")


def _usage(line: str) -> str:
    """Return a line such as ``garrison [--config FILE] COMMAND`` with what is typed in bold, the rest in italics."""
    parts = []
    for word in line.split():
        bare = word.strip("[]")
        styled = italic(bare) if bare.isupper() else bold(bare)
        parts.append(escape(word).replace(escape(bare), styled, 1))
    return " ".join(parts)


def _variables(program: Command) -> dict[str, str]:
    found = {
        option.variable: option.names[-1] for command in program.below for option in command.options if option.variable
    }
    return dict(sorted(found.items()))


def _files(page: Page, *, everything: bool) -> None:
    """Add where things are: what the settings become for root where nothing is set."""
    settings = resolve(Settings(), Surroundings(root=True, hostname="HOST", home="/root", environ={}))
    agent = settings.agent
    page.section("Files")
    page.item(italic(_CONFIGURATION), "The configuration, see garrison.toml(5).")
    page.item(italic(f"{agent.run_dir}/{SOCKET_NAME}"), "Where garrison(1) asks the agent.")
    if not everything:
        return
    page.item(italic(agent.killswitch_file), "All workers are dead while it exists.")
    page.item(italic(f"{settings.store.directory.path}/"), "The keys of the directory store, as files.")
    page.item(italic(f"{agent.state_dir}/"), "State that survives a restart; the spool of events.")
    page.item(italic(f"{agent.log_dir}/"), "The agent's log, and the events of the file sink.")
    page.markdown("The settings of `[agent]`, `[store.directory]` and `[sink.file]` move them.")


def _see_also(page: Page, *others: str) -> None:
    page.section("See also")
    page.markdown(", ".join(others))
