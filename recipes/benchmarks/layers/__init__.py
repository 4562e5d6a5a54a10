"""The benchmark of single layers: against torch and other libraries."""
