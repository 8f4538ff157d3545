"""The doors: every module here is one."""
