"""``make vm``: virtual machines with systemd that install the packages, and what was seen there as a table.

The exit code is 0 only if every step was as it should be, 69 where this machine lacks something.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.etcd.cluster import free_port
from tests.vm import checkout, goods, image, legacy, powercut, product, rpm, service, steps, upgrade
from tests.vm.machine import LEGACY, Machine
from tests.vm.transcript import Transcript

TOGETHER = 3
"""Machines at a time. Each keeps one core busy, but for the waiting: for a watchdog, for an agent held to its quota."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done in one machine.

    Attributes:
        what: In words.
        run: Does it.
        arguments: Of the kernel.
        ports: How many of the machine's are reached from outside.
        installed: The package that is in its image already, see `goods.Goods`.
        configuration: What the agent in the image is told; it runs from the boot on.
        tests: It runs the checkout's tests; only when asked for.
    """

    what: str
    run: Callable[[Machine, Transcript, goods.Goods], None]
    arguments: str = ""
    ports: int = 0
    installed: str = ""
    configuration: str = steps.EMULATED
    tests: bool = False


def _alone(run: Callable[[Machine, Transcript], None]) -> Callable[[Machine, Transcript, goods.Goods], None]:
    return lambda machine, transcript, _: run(machine, transcript)


def _cuts(cuts: range) -> Callable[[Machine, Transcript, goods.Goods], None]:
    return lambda machine, transcript, _: powercut.run(machine, transcript, cuts)


SCENARIOS = {
    "upgrade": Scenario("upgrade, put back, downgrade", upgrade.run, installed="older"),
    "product": Scenario("the whole product, as docs/install.md says", _alone(product.run), ports=2),
    "powercut": Scenario(
        "five power cuts", _cuts(powercut.FIRST), installed="garrison", configuration=powercut.WRITING
    ),
    "v1": Scenario("a host with cgroup v1", _alone(legacy.run), LEGACY, installed="garrison", configuration=steps.HOGS),
    "powercut-2": Scenario("five more", _cuts(powercut.SECOND), installed="garrison", configuration=powercut.WRITING),
    "service": Scenario("a host with cgroup v2", _alone(service.run), installed="garrison", configuration=steps.HOGS),
    "rpm": Scenario("the RPM, with the rpm tool", _alone(rpm.run)),
    "tests": Scenario("tests of the cgroups on v2", _alone(checkout.run), tests=True),
    "tests-v1": Scenario("tests of the cgroups on v1", _alone(checkout.run), LEGACY, tests=True),
}
"""In the order in which they start: the longest first."""


def main() -> int:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Test the packages in virtual machines.",
        epilog="; ".join(f"{name}: {each.what}" for name, each in SCENARIOS.items()),
    )
    default = [name for name, each in SCENARIOS.items() if not each.tests]
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: {' '.join(default)}")
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="FOLDER",
        help="test the DEB and the RPM of this folder (default: built if need be, compressed quickly)",
    )
    parser.add_argument("--together", type=int, default=TOGETHER, help="machines at a time (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    names = [name for name in SCENARIOS if name in (arguments.scenarios or default)]
    began = time.monotonic()
    try:
        base, wares, tests = _prepare(arguments.packages, tests=any(SCENARIOS[name].tests for name in names))
    except image.MissingError as error:
        sys.stderr.write(f"{error}\n")
        return 69
    except goods.PackageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    prepared = time.monotonic() - began
    sys.stdout.write(f"{len(names)} machines, {arguments.together} at a time; ready after {prepared:.0f} s\n")
    sys.stdout.flush()
    one = functools.partial(scenario, base=base, wares=wares, tests=tests)
    with concurrent.futures.ThreadPoolExecutor(arguments.together) as pool:
        transcripts = list(pool.map(one, names))
    good = all(transcript.good for transcript in transcripts)
    text = "\n".join(transcript.table() for transcript in transcripts) + (
        f"\n{sum(len(each.steps) for each in transcripts)} steps, {'all good' if good else 'NOT all good'}, "
        f"{time.monotonic() - began:.0f} s, of these {prepared:.0f} s for image and packages; "
        f"{arguments.together} emulated machines at a time\n"
    )
    (image.BUILD / "transcript.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"\n{text}")
    return 0 if good else 1


def _prepare(folder: Path | None, *, tests: bool) -> tuple[image.Image, goods.Goods, Path]:
    """Build the packages and make the image at the same time; return the image, the second disk, that of the tests."""
    image.require()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        packages = pool.submit(goods.packages, folder)
        base = pool.submit(image.get)
        wares = goods.build(packages.result(), base.result())
    return base.result(), wares, checkout.disk() if tests else wares.disk


def scenario(name: str, base: image.Image, wares: goods.Goods, tests: Path) -> Transcript:
    """Run one scenario on a machine of its own; what went wrong is in its transcript."""
    chosen, transcript = SCENARIOS[name], Transcript(name)
    folder = image.BUILD / "machines" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ports = tuple(free_port() for _ in range(chosen.ports))
    second = tests if chosen.tests else wares.disk
    try:
        with transcript.step("power on") as say:
            base = wares.images[chosen.installed] if chosen.installed else base
            machine = Machine(base, folder, second, arguments=chosen.arguments, ports=ports)
            if chosen.installed:
                said = base.disk.with_suffix(".log").read_text().splitlines()
                say(f"image made in a chroot: {next(line for line in said if line.startswith('garrison: '))}")
                with image.mounted(machine.disk) as root, (root / steps.CONFIGURATION.lstrip("/")).open("a") as file:
                    file.write(chosen.configuration)
            machine.start()
            say(chosen.what)
        with machine:
            try:
                chosen.run(machine, transcript, wares)
            except Exception:
                (folder / "failure.txt").write_text(f"{traceback.format_exc()}\n{_state(machine)}", encoding="utf-8")
                sys.stdout.write(f"{name}: {folder / 'failure.txt'} and console.log beside it say more\n")
    except Exception:
        sys.stdout.write(traceback.format_exc())
    return transcript


def _state(machine: Machine) -> str:
    try:
        return machine.try_run(
            "systemctl status garrison --no-pager -l; journalctl -n 150 --no-pager; timeout 30 garrison status;"
            " cat /etc/garrison/garrison.toml; ps axo pid,ppid,stat,args"
        ).output
    except Exception as error:  # it may be what failed
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
