"""Procedures that only QEMU has. See `ringzero.doors.libvirt.procedures.notation`."""

QEMU = """
   1 DOMAIN_MONITOR_COMMAND (domain: domain, cmd: string, flags: uint) -> (result: string)
   2 DOMAIN_ATTACH (pid_value: uint, flags: uint) -> (domain: domain)
   3 DOMAIN_AGENT_COMMAND (domain: domain, cmd: string, timeout: int, flags: uint)
     -> (result: string?)
   4 CONNECT_DOMAIN_MONITOR_EVENT_REGISTER (domain: domain?, event: string?, flags: uint)
     -> (callback_id: int)
   5 CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER (callback_id: int)
   6 DOMAIN_MONITOR_EVENT (callback_id: int, domain: domain, event: string, seconds: hyper,
     micros: uint, details: string?) event
   7 DOMAIN_MONITOR_COMMAND_WITH_FILES (domain: domain, cmd: string, flags: uint)
     -> (result: string)
"""
