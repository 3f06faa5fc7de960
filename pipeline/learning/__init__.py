"""The network, its losses, its training and its predictions: the only home of torch."""

import os

# Threads that wait spin by default: on cores that others use too, a training step took up to five
# times as long. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
