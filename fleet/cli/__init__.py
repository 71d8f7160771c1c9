"""`garrison`: the operator's command line."""
