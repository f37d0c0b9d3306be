"""What the commands share: parser, folders and files, signals, the machine's memory."""
