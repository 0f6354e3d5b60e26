"""Studies: pieces of work with a result file each, and the workers and machines that make them."""
