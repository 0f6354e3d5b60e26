"""Gymnasium environments over the session core."""
