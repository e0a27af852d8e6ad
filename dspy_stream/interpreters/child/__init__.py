"""What runs inside the interpreter's own processes. Nothing of it is imported by the rest of the package."""
