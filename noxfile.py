"""Sessions: `nox -s bench`, `tests`, `counters`, `gate`, `lint`, `types`. All use the Python that nox itself runs in.

torch is several GB, so no session makes an environment of its own: install with `pip install -e ".[test]"`.
"""

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def bench(session: nox.Session) -> None:
    """Run the default grid, or another: `nox -s bench -- --grid smoke`."""
    session.run(sys.executable, "-m", "bench", "run", *(session.posargs or ["--grid", "default"]))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests."""
    session.run(sys.executable, "-m", "pytest", *session.posargs)


@nox.session
def counters(session: nox.Session) -> None:
    """The exact gate: counters of training steps against the committed baseline; `-- --update` writes it anew."""
    session.run(sys.executable, "-m", "tests.benchmarks.counters", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """The timed gate: this tree against another commit, `nox -s gate -- --base main`."""
    session.run(sys.executable, "-m", "tests.benchmarks.gate", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.run(sys.executable, "-m", "mypy")
