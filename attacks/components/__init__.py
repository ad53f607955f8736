"""Components that replace torchattacks' own: faster, or correct where torchattacks is not."""
