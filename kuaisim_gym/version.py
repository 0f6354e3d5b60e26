"""Version of the distribution, in its own module so that builds read it without imports."""

__version__ = "0.1.0"
