"""The machine: interrupts, processes, files, object stores, Ray sessions. Imports nothing but errors."""
