"""The actions of `ringzero snapshot`, a module each."""
