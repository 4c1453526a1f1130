"""What no other system has than Unix: locks of files, and a process's own limits."""

from minivae.errors import UserError

try:
    import fcntl
    import resource
except ModuleNotFoundError as e:
    raise UserError("minivae needs Linux or macOS; on Windows, run it in WSL, which `wsl --install` sets up") from e

__all__ = ["fcntl", "resource"]
