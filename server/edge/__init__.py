"""Connections, calls and messages: what meets the network."""
