"""The version of kpx, read by the packaging and by `kpx --version`."""

__version__ = "0.1.0"
