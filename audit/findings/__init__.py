"""What is concluded from the rows of a run."""
