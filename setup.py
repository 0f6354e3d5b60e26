"""The packages of the distribution; all other settings stand in setup.cfg and pyproject.toml.

The folder ``benchmarks`` is installed as ``kuaisim_benchmarks``: its own name would collide.
"""

from setuptools import find_packages, setup

RENAMED = {"benchmarks": "kuaisim_benchmarks"}

setup(
    packages=[
        *find_packages(include=["kuaisim_gym*", "dsrm_agents*"]),
        *RENAMED.values(),
        *(f"{name}.{part}" for folder, name in RENAMED.items() for part in find_packages(folder)),
    ],
    package_dir={name: folder for folder, name in RENAMED.items()},
)
