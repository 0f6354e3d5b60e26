"""Worth of state estimates to one policy that is not trained."""
