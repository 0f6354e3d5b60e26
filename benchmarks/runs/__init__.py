"""Runs: agents are trained, kept, judged, searched and played."""
