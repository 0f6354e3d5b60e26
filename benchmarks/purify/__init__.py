"""The purification study: what each purifier removes from user states, and what it keeps."""
