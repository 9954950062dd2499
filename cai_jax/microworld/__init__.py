"""A small synthetic language in which harm, help and evasion are decided exactly: data for the
unchanged pipeline."""
