"""The wire contract, porestream.v1: generated stubs."""
