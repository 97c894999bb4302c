"""Signal to bases: normalise, cut, compute, decode, stitch."""
