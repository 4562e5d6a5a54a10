"""Whole models against their peers."""
