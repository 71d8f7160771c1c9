"""Manual pages and shell completion, made from what the programs say of themselves."""
