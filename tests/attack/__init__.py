"""Attacks on the packages: what is lost, and what fails in silence."""
