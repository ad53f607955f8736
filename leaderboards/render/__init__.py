"""Tables as Markdown, LaTeX and JSON, as figures, and as a site."""
