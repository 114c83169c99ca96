"""What LoRun is compared with: packages from PyPI, and code written after the field's published code."""
