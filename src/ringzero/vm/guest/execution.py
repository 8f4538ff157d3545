"""One command in the guest, run to its end with its output collected."""

from __future__ import annotations

from ringzero.api.command import CommandResult, Invocation
from ringzero.errors import TimeoutExpiredError
from ringzero.vm.guest.agent import Agent


class Execution:
    """A command that was asked of `agent`; it begins once the guest takes commands.

    Raises InvalidValueError for one that cannot be sent.
    """

    def __init__(self, agent: Agent, invocation: Invocation) -> None:
        self._invocation = invocation
        self._stdout, self._stderr = bytearray(), bytearray()
        data = invocation.data()
        self._command = agent.run(
            invocation.words(takes_options=agent.takes_options),
            takes_input=bool(data),
            on_stdout=self._stdout.extend,
            on_stderr=self._stderr.extend,
        )
        if data:
            self._command.write(data)
            self._command.close_input()

    def finish(self) -> CommandResult[bytes] | CommandResult[str]:
        """Wait for the end and return the result.

        The command is killed when its time is over, or the wait is interrupted (Ctrl-C). Raises
        TimeoutExpiredError, CommandError, and GuestError when the guest ended before.
        """
        timeout = self._invocation.timeout
        try:
            status = self._command.wait(timeout)
        except KeyboardInterrupt:
            self.kill()
            raise
        if status is None:
            self.kill()
            raise TimeoutExpiredError(f"the command did not end within {timeout} seconds")
        return self._invocation.result(status, bytes(self._stdout), bytes(self._stderr))

    def kill(self) -> None:
        """Have the command end at once."""
        self._command.signal("KILL")
