"""The purification study: information that purifiers remove from user states and retain."""
