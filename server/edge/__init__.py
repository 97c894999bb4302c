"""The network side: connections, calls and messages."""
