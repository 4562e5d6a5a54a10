"""What the rows of a study say about the claims of the paper."""
