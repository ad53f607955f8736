"""The application: command line, protocols, data, networks, training, tracking, execution."""

__version__ = "0.2.0.dev0"
