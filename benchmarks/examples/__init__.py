"""Other libraries' ways to train on the environments: one file each, to read and to copy."""
