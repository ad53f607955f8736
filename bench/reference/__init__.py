"""Descriptions of the methods, made from the methods themselves."""
