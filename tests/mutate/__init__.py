"""Faults put into the packages one by one, each of which some test should see."""
