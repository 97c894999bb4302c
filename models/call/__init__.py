"""Turns signal into bases: normalise, cut, compute, decode, stitch."""
