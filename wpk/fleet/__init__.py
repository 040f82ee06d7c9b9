"""Tuning on several machines: Dask carries requests and results, the client keeps the log."""
