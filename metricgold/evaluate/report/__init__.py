"""The page about benchmarks: HTML that needs no other file, and Markdown, both from rows alone."""
