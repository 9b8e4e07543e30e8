"""One prepared run of every check that needs a GPU."""
