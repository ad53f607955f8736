"""Suites, specs, tuned configurations, and the options that change a protocol. No torch."""
