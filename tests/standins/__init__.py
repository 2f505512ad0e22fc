"""Servers that speak the real protocols on a loopback port, so that no test needs a network, a key or a token."""
