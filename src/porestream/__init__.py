"""Basecalls and aligns nanopore signal that is streamed over gRPC.

Each package here is a link to the repository's folder of that name (v1: proto/porestream/v1), as
docs/inside/decisions/0010 explains.
"""
