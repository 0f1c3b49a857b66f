"""Sessions: `nox -s bench`, `tests`, `counters`, `gate`, `gate_power`, `peers`, `docs`, `lint`, `types`.

torch is several GB, so all use the Python that nox itself runs in: install with `pip install -e ".[test]"`. `peers`
installs the programs it compares with into its own environment, which has everything else from that Python.
"""

import os
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]

NOTHING_SELECTED = 5
"""Exit status of pytest if no test was selected."""


@nox.session
def bench(session: nox.Session) -> None:
    """Run the default grid, or another: `nox -s bench -- --grid smoke`."""
    session.run(sys.executable, "-m", "bench", "run", *(session.posargs or ["--grid", "default"]))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: first four files at a time, then the tests marked `alone`, one by one."""
    # Without cached bytecode, each of the hundreds of processes that tests start would compile the suite again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Many tests wait for processes that they started, so two cores have work for four.
    side_by_side = ["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
    session.log("five thousand tests take 15 to 40 minutes on two cores; the first minute may show nothing")
    statuses = []
    for options in (["-m", "not alone", *side_by_side], ["-m", "alone"]):
        command = ["-m", "pytest", *session.posargs, *options]
        session.log(f"python {' '.join(command)}")
        statuses.append(subprocess.run([sys.executable, *command], check=False, env=environment).returncode)
    failed = [status for status in statuses if status not in (0, NOTHING_SELECTED)]
    if failed or 0 not in statuses:
        sys.exit(max(failed, default=NOTHING_SELECTED))


@nox.session
def counters(session: nox.Session) -> None:
    """Compare counters of training steps with the committed baseline; `-- --update` rewrites it."""
    _exit_as(session, "-m", "bench.devtools.counters", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Compare the times of this tree with those of another commit: `nox -s gate -- --base main`."""
    _exit_as(session, "-m", "bench.devtools.gate", *session.posargs)


def _exit_as(session: nox.Session, *arguments: str) -> None:
    """Run Python. If it fails, nox ends with its exit status, which says why.

    `session.run` would turn every status into 1.
    """
    session.log(f"python {' '.join(arguments)}")
    if status := subprocess.run([sys.executable, *arguments], check=False).returncode:
        sys.exit(status)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documents as a site, in `site/`; a link that leads nowhere is an error."""
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    session.run(sys.executable, "-m", "mkdocs", "build", "--strict", *session.posargs, env=quiet)


@nox.session
def gate_power(session: nox.Session) -> None:
    """Measure how often gates detect planted changes or fail falsely (hours): `nox -s gate_power -- --data FOLDER`."""
    power = [sys.executable, "-m", "bench.devtools.power"]
    out = f"--out=results/gate-power-{datetime.now(UTC):%Y%m%d}"
    session.run(*power, "exact", out)
    session.run(*power, "runs", out, *session.posargs)
    session.run(*power, "record", out)
    for planted in ("nothing", "5% slower", "10% slower", "20% slower", "50% slower"):
        session.run(*power, "live", out, "--planted", planted)
    outcomes = sorted(map(str, Path("results").glob("gate-power*/*.json")))
    with Path("reports/gate-power.md").open("w", encoding="utf-8") as report:
        session.run(*power, "--render", *outcomes, stdout=report)


@nox.session
def paired_power(session: nox.Session) -> None:
    """Measure how often process pairs find differences, at rest and beside a compiler (an hour, or several)."""
    power, out = [sys.executable, "-m", "bench.devtools.paired_power"], "results/paired-power"
    session.run(*power, "record", "--out", out, *session.posargs)
    session.run(*power, "record", "--out", out, "--loaded", *session.posargs)
    session.run(*power, "replay", *sorted(map(str, Path(out).glob("pool-*.json"))), "--out", out)
    newest = max(Path(out).glob("replayed-*.json"))  # names have the time in them
    with Path("reports/paired-power.md").open("w", encoding="utf-8") as report:
        session.run(*power, "render", str(newest), stdout=report)


@nox.session(venv_backend="venv")
def peers(session: nox.Session) -> None:
    """Compare times, memory, accuracy with a plain loop, Lightning, fastai: `nox -s peers -- --rounds 3 --epochs 2`."""
    (packages,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    parent = sysconfig.get_path("purelib")
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", encoding="utf-8")
    session.install("lightning", "fastai")
    python = (Path(session.virtualenv.bin) / "python").relative_to(Path.cwd())
    cell = "--data {data} --regime {regime} --backbone {backbone} --epochs {epochs} --device {device} --seed {seed}"
    sides = [f"--peer={name}={python} -m bench.devtools.{name}_loop {cell}" for name in ("lightning", "fastai")]
    out = f"results/peers-{datetime.now(UTC):%Y%m%d}"
    measure = [sys.executable, "-m", "bench.devtools.peers", *sides, "--out", out, *session.posargs]
    for figure in ([], ["--memory"], ["--accuracy"]):
        for backbone in ("torchvision:resnet18", "timm:tf_efficientnet_lite0"):
            for regime in ("finetune", "frozen"):
                session.run(*measure, "--backbone", backbone, "--regime", regime, *figure, external=True)
    samples = sorted(map(str, Path("results").glob("peers-*/*.json")))
    with Path("reports/peers.md").open("w", encoding="utf-8") as report:
        session.run(sys.executable, "-m", "bench.devtools.peers", "--render", *samples, stdout=report, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, and that imports keep to the layers."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")
    session.run(f"{sysconfig.get_path('scripts')}/lint-imports", "--no-cache", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.run(sys.executable, "-m", "mypy")
