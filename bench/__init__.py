"""The application: command line, suites, data, models, the one training loop, tracking and execution."""

__version__ = "0.1.0"
