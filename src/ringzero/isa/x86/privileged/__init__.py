"""What an operating system needs: paging, exceptions, segments, system registers."""
