"""What every command does with files, folders, signals and messages."""
