"""Smoke tests of other people's software with the environments.

A module here is a script that ``python -m benchmarks.clients`` runs in a virtual environment of its
own. Its head names the packages, in the form of inline script metadata; below ``[tool.clients]``
may stand

* ``extras``: of this package, such as ``"agents"``;
* ``constraints``: ``false`` where the client cannot have the versions of ``constraints.txt``;
* ``without-dependencies``: packages that are installed as they are, whatever they ask for.
"""
