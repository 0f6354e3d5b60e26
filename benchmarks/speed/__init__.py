"""Time and memory of environments, response models, purifiers and training."""
