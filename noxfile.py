"""What a contributor runs: `nox -l` lists the sessions; start with `nox -s tests` and `nox -s demo`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/pyproject.toml"))
FOLDERS = {name: f"packages/{name}" for name in PACKAGES} | {name: f"examples/{name}" for name in EXAMPLES}
TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "jaxtyping", "beartype", "sybil", "copier", "ruff"]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"  # torch is large; pip installs our folders anew every time
nox.options.sessions = ["lint", "typecheck", "tests", "docs"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test: each package, the packages together, and the code in the documentation."""
    install(session, *everything(), *TEST_TOOLS)
    session.run("pytest", "--numprocesses=2", *session.posargs)


@nox.session
def isa(session: nox.Session) -> None:
    """Repeat the tests of the native kernels with each instruction set that this CPU has."""
    install(session, "./packages/mmm-core", "numpy", *TEST_TOOLS)  # torch warns where there is no NumPy
    program = "from mmm_core.native_library import AVAILABLE; print(*AVAILABLE)"
    names = session.run("python", "-c", program, silent=True)
    kinds = ("isa", "native", "properties", "products", "extremes", "mamba", "step", "threads")
    files = [f"tests/core/test_{kind}.py" for kind in kinds]
    for name in str(names).split():
        session.run("pytest", "--numprocesses=2", *files, *session.posargs, env={"MMM_CORE_ISA": name})


@nox.session
def triton(session: nox.Session) -> None:
    """Run the kernels for GPUs on the CPU, by Triton's interpreter, on small calls; and compile them for a GPU."""
    install(session, "./packages/mmm-core", "numpy", "triton", *TEST_TOOLS)
    interpreted = {"TRITON_INTERPRET": "1", "MMM_CORE_BACKEND": "triton", "MMM_CORE_TESTED": "triton"}
    files = session.posargs or ["tests/triton/test_contract.py", "tests/core/test_conv.py"]
    session.run("pytest", "--numprocesses=2", *files, env=interpreted)
    if not session.posargs:
        session.run("pytest", "--numprocesses=2", "tests/triton/test_compiler.py")


@nox.session
def gpu(session: nox.Session) -> None:
    """Test the kernels for GPUs on this machine's GPU, and time them; what stands after `--` is the benchmark's."""
    install(session, "./packages/mmm-core", "numpy", "triton", *TEST_TOOLS)
    session.run("pytest", "tests/triton", "tests/gpu")
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Run the C++ kernels alone under AddressSanitizer, UBSan and ThreadSanitizer, with each instruction set."""
    install(session, "cmake", "ninja")
    # ThreadSanitizer looks at threads alone: fewer calls are enough.
    for sanitizers, calls in (("address,undefined", "400"), ("thread", "100")):
        build = Path(session.create_tmp()) / sanitizers
        options = ("-G", "Ninja", f"-DMMM_CORE_SANITIZE={sanitizers}")
        session.run("cmake", "-S", "packages/mmm-core/native", "-B", str(build), *options, silent=True)
        session.run("cmake", "--build", str(build), silent=True)
        session.run(str(build / "exercise"), *(session.posargs or [calls]), external=True)


@nox.session
def integration(session: nox.Session) -> None:
    """Run only the tests of the packages together: who imports whom, metadata, shapes at run time."""
    install(session, *everything(), *TEST_TOOLS)
    session.run("pytest", "tests/integration", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare with the libraries that ours stands in for, leaves for, or works in: transformers, PEFT, onnxruntime."""
    ours = ("./packages/mmm-core[onnx]", "./packages/mmm-block[transformers]")
    install(session, *everything(), *ours, "peft", *TEST_TOOLS)
    session.run("pytest", "--numprocesses=2", "tests/parity", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    install(session, "ruff")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of every package."""
    install(session, *everything(), "mypy", "jaxtyping", "types-PyYAML")
    session.run("mypy", *(f"{folder}/src" for folder in FOLDERS.values()), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; `nox -s docs -- serve` shows it while you write."""
    install(session, "mkdocs-material", "mkdocstrings[python]", "ruff")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def demo(session: nox.Session) -> None:
    """Train a model that answers questions about pictures; `-- --fusion concat` picks another method."""
    install(session, *everything())
    session.log(f"mmm is {Path(session.bin) / 'mmm'}: ask the model with it, or go on with a training that was stopped")
    # Ctrl-C reaches the trainer too, which then saves: give it the time.
    session.run("mmm", "demo", *session.posargs, interrupt_timeout=60.0, terminate_timeout=10.0)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, or only those named after `--`."""
    install(session, *everything(), "transformers", "mambapy")
    others = {"timing", "gpu", "mamba_ssm_extension"}  # what they share, and what needs a GPU
    scripts = sorted({path.stem for path in ROOT.glob("benchmarks/*.py")} - others)
    for script in session.posargs or scripts:
        session.run("python", f"benchmarks/{script}.py")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every sdist and wheel, then use each wheel alone in an environment of its own, and a plug-in with them."""
    install(session, "build", "twine", "virtualenv", "copier")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for folder in FOLDERS.values():
        session.run("python", "-m", "build", "--outdir", str(dist), folder, silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    for name in PACKAGES:
        use_alone(session, name, {name})
    for name in EXAMPLES:
        use_alone(session, name, {name, "mmm-train"})
    without_compiler(session)
    use_template(session)


def without_compiler(session: nox.Session) -> None:
    """Build mmm-core from its sdist where no C++ compiler is found, and use that wheel alone."""
    dist = Path(session.create_tmp()) / "without-compiler"
    shutil.rmtree(dist, ignore_errors=True)
    (sdist,) = map(str, ROOT.glob("dist/mmm_core-*.tar.gz"))
    compilers = {"CC": "/no/compiler", "CXX": "/no/compiler"}
    options = ("--no-deps", "--no-cache-dir", "--wheel-dir", str(dist))
    session.run("python", "-m", "pip", "wheel", *options, sdist, env=compilers, silent=True)
    use_alone(session, "mmm-core", {"mmm-core"}, dist, "mmm_core_without_compiler")


def use_alone(
    session: nox.Session, name: str, roots: set[str], dist: Path = ROOT / "dist", smoke: str | None = None
) -> None:
    """Install the wheels of `roots` and of the siblings they declare, nothing else of ours; test `name`."""
    with environment(session, name, wheels_of(roots, dist)) as python:
        session.run(python, "-I", "tests/smoke/alone.py", *sorted(with_siblings(roots)), external=True)
        run_smoke(session, python, smoke or name.replace("-", "_"))


def use_template(session: nox.Session) -> None:
    """Make a plug-in from the template, install it beside our wheels, do what its own CI does, train it, remove it."""
    method, distribution = "concat_mean", "mmm-fusion-concat-mean"
    answers = ("--data", f"method={method}", "--data", "author=A Stranger")
    # Outside this repository, whose settings are none of a stranger's.
    with tempfile.TemporaryDirectory() as home:
        folder = str(Path(home) / distribution)
        session.run("copier", "copy", "--quiet", "--defaults", *answers, "template", folder)
        with environment(session, "template", [*wheels_of({"mmm-train"}), f"{folder}[test]"]) as python:
            with session.chdir(folder):
                for command in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy", "src"), ("pytest", "-q")):
                    session.run(python, "-m", *command, external=True)
            run_smoke(session, python, "plugin", method, distribution)
            session.run(python, "-m", "pip", "uninstall", "--quiet", "--yes", distribution, external=True)
            run_smoke(session, python, "no_plugin", method, "concat")


@contextlib.contextmanager
def environment(session: nox.Session, name: str, requirements: list[str]) -> Iterator[str]:
    """An environment of its own with these requirements, for as long as it is used; gives its Python."""
    home = Path(session.create_tmp()).resolve() / name
    python = str(home / ("Scripts/python.exe" if session.bin.endswith("Scripts") else "bin/python"))
    session.run("virtualenv", "--quiet", "--clear", str(home))
    options = ("--quiet", "--no-compile", "-c", "constraints.txt")
    session.run(python, "-m", "pip", "install", *options, *requirements, external=True)
    session.run(python, "-m", "pip", "check", external=True)
    yield python
    shutil.rmtree(home)


def run_smoke(session: nox.Session, python: str, script: str, *arguments: str) -> None:
    """Run a script of tests/smoke. Warnings are errors; torch's own, that there is no NumPy here, is none of ours."""
    warnings = ("-W", "error", "-W", "ignore:Failed to initialize NumPy")
    session.run(python, "-I", *warnings, f"tests/smoke/{script}.py", *arguments, external=True)


def wheels_of(names: set[str], dist: Path = ROOT / "dist") -> list[str]:
    """The wheels of these packages and of those they require, as far as they are ours."""
    patterns = [f"{each.replace('-', '_')}-*.whl" for each in sorted(with_siblings(names))]
    return [str(wheel) for pattern in patterns for wheel in dist.glob(pattern)]


def install(session: nox.Session, *requirements: str) -> None:
    """Install at the versions of constraints.txt, the build tools included."""
    session.env["PIP_BUILD_CONSTRAINT"] = str(ROOT / "constraints.txt")
    session.install("-c", "constraints.txt", *requirements)


def everything() -> list[str]:
    """Every package and example as pip takes it, with the extras that the demo needs."""
    return [f"./{folder}[demo]" if name == "mmm-train" else f"./{folder}" for name, folder in FOLDERS.items()]


def with_siblings(names: set[str]) -> set[str]:
    """`names` and, step by step, every one of our packages that they declare as a dependency."""
    todo, found = sorted(names), set()
    while todo:
        name = todo.pop()
        found.add(name)
        project = nox.project.load_toml(ROOT / FOLDERS[name] / "pyproject.toml")["project"]
        declared = {Requirement(line).name for line in project["dependencies"]}
        todo += sorted((declared & FOLDERS.keys()) - found)
    return found
