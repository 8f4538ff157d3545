"""Services that a host keeps running as one file describes them: `ringzero deploy`."""
