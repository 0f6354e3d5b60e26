"""The paper's figures about purification, from studies that are made where they are missing."""
