"""The measures: networks and images in, findings out."""
