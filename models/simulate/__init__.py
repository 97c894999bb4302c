"""R10.4.1 signal from sequence: the pore's levels, the noise, the flow cell, the files."""
