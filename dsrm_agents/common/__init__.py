"""What the agents share."""
