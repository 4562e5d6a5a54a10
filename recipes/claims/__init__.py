"""Test the claims of a paper with the rows of a study."""
