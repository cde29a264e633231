"""Speed and fidelity measurements."""
