"""A recipe's steps, and the run directory that they are carried out in."""
