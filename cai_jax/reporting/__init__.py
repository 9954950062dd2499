"""Run directories to readable pages: what is read, figures, tables, records. Pure rendering; models
are not loaded."""
