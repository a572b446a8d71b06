"""Scripts that produce the numbers in the documents; never imported by the package."""
