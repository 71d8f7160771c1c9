"""Where the keys come from: the interface of stores, the directory store, the local killswitch file."""
