"""Signal to bases: formats, scaling, chunking, networks, CRF decoding. Speaks arrays; knows no server."""
