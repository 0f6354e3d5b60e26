"""Version of the distribution, by itself so that builds read it without imports."""

__version__ = "0.1.0"
