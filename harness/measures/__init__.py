"""What is measured beside accuracy, one file each."""
