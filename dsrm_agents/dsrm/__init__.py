"""DSRM: diffusion-based purification of the user state (section 4.2)."""
