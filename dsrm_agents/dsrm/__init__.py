"""DSRM: diffusion-based purification of the user state (section 4.2)."""

# Their purifiers register themselves, for `fit_purifier` and `load_purifier` to find.
import dsrm_agents.dsrm.controls
import dsrm_agents.dsrm.dsrm  # noqa: F401
