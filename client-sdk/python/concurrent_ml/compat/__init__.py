"""Other libraries' names for what this one does, so that programs written for them run as they are."""
