"""What the environments and the sequential response model cost in time and memory."""
