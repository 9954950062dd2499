"""The report of runs: data from their files, figures, and templates for HTML and Markdown."""
