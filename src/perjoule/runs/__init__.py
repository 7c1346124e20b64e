"""Run folders: the only code that knows their file names, writes them, and reads them back."""
