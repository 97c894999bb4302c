"""Sources of reads: POD5 files and folders."""
