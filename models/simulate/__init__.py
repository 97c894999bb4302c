"""Simulates R10.4.1 signal from sequence: the pore's levels, noise, the flow cell, and output files."""
